"""One TunedModel in several threads and asyncio tasks; what `enable` switches for whom."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.families.timm_conv import tiny_efficientnet
from tests.models import images_for, tiny_swin, tiny_vit
from tests.unit.injection.concurrency import threads
from vpeft.injection.guard import Guard
from vpeft.method import get_method
from vpeft.methods import LST, SSF, BitFit, LoRA


def two_adapters(name: str, make: Callable[[], nn.Module] = tiny_vit, **fields: Any) -> vpeft.TunedModel:
    """A model in eval mode with two adapters of one method, `first` and `second`, off zero."""
    torch.manual_seed(0)
    tuned = vpeft.tune(make(), get_method(name)(**fields), num_classes=3, show=False, name="first")
    tuned.attach(get_method(name)(**fields), num_classes=3, name="second")
    with torch.no_grad():
        for adapter in ("first", "second"):
            for _, parameter in tuned.trainable(adapter):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return tuned.eval()


METHODS = ["lora", "lst", "vpt_deep", "bitfit", "ssf", "adaptformer", "convpass", "dtl", "prefix_tuning", "hst"]


@pytest.mark.parametrize("name", METHODS)
def test_threads_and_tasks_get_their_own_answers(name: str) -> None:
    images = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    threads(lambda: two_adapters(name), images)


def test_tokens_beside_a_map_are_those_of_the_thread() -> None:
    images = [images_for(tiny_swin()) for _ in range(2)]
    threads(lambda: two_adapters("vpt_deep", tiny_swin, tokens=2), images, rounds=20)


def test_merged_and_unfrozen_adapters_take_turns() -> None:
    tuned = two_adapters("bitfit", lambda: tiny_vit(qkv_bias=True))
    tuned.attach(LoRA(rank=2), num_classes=3, name="third")
    with torch.no_grad():
        for _, parameter in tuned.trainable("third"):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    tuned.merge("third")
    tuned.detach("first")
    threads(lambda: tuned.eval(), [torch.randn(2, 3, 32, 32) for _ in range(2)], rounds=20)


def test_each_in_two_threads() -> None:
    tuned, images = two_adapters("lora"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = {}
        for name in ("first", "second"):
            with tuned.enable(name):
                expected[name] = tuned(images)
        from tests.unit.injection.concurrency import wrong_answers

        def mixed(names: list[str]) -> Tensor:
            return torch.stack(tuned.each(images, names))

        calls = [
            (lambda: mixed(["first", "second"]), torch.stack([expected["first"][0], expected["second"][1]])),
            (lambda: mixed(["second", "first"]), torch.stack([expected["second"][0], expected["first"][1]])),
            (lambda: mixed(["first", "first"]), expected["first"]),
            (lambda: tuned(images), expected["second"]),
        ]
        assert not wrong_answers(calls, 30)


def in_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_a_statement_switches_for_everybody_and_a_with_for_the_thread() -> None:
    tuned = two_adapters("lora")
    tuned.enable("first")
    assert tuned.active == in_thread(lambda: tuned.active) == "first"
    with tuned.enable("second"):
        assert tuned.active == "second"
        assert in_thread(lambda: tuned.active) == "first"
        tuned.disable()
        assert tuned.active is None, "a statement inside of a with holds until its end"
        assert in_thread(lambda: tuned.active) == "first"
    assert tuned.active == in_thread(lambda: tuned.active) == "first"
    in_thread(lambda: (tuned.enable("second"), None)[1])
    assert tuned.active == "second"


def test_what_is_neither_statement_nor_with_yet_is_seen_by_its_thread_alone() -> None:
    tuned = two_adapters("lora")
    enabled = tuned.enable("first")
    assert tuned.active == "first"
    assert in_thread(lambda: tuned.active) == "second"
    with enabled:
        assert tuned.active == "first"
        assert in_thread(lambda: tuned.active) == "second"
    assert tuned.active == "second"
    enabled = tuned.enable("first")
    del enabled
    assert in_thread(lambda: tuned.active) == "first"
    kept = [tuned.enable("second")]
    tuned.enable("first")
    assert tuned.active == in_thread(lambda: tuned.active) == "first", "the later statement counts"
    kept.clear()
    assert tuned.active == "first"


def test_an_exception_inside_of_with_switches_back() -> None:
    tuned = two_adapters("bitfit")
    expected = tuned(torch.ones(1, 3, 32, 32))
    with pytest.raises(ValueError, match="ours"), tuned.enable("first"):
        raise ValueError("ours")
    assert tuned.active == "second"
    assert torch.equal(tuned(torch.ones(1, 3, 32, 32)), expected)


def test_the_backbone_called_by_itself_follows_the_switch() -> None:
    tuned, images = two_adapters("lora"), torch.ones(1, 3, 32, 32)
    found = [tuned.backbone(images)]
    for name in ("first", "second"):
        with tuned.enable(name):
            found.append(tuned.backbone(images))
    with tuned.disable():
        found.append(tuned.backbone(images))
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[1], found[2], atol=1e-3) and not torch.allclose(found[3], found[2], atol=1e-3)


class Slow(nn.Module):
    """A head that says when it runs, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.entered, self.goes_on = threading.Event(), threading.Event()

    def forward(self, features: Tensor) -> Tensor:
        self.entered.set()
        assert self.goes_on.wait(10)
        return features * self.weight


@pytest.mark.parametrize("change", ["attach", "detach"])
def test_a_change_waits_for_the_passes_of_other_threads(change: str) -> None:
    head = Slow()
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), head=head, show=False, name="a", verify=False)
    tuned.attach(SSF(), num_classes=2, name="b")
    tuned.enable("a")
    done: list[str] = []
    running = threading.Thread(target=lambda: (tuned(torch.ones(1, 3, 32, 32)), done.append("pass")))
    running.start()
    assert head.entered.wait(10)

    def act() -> None:
        tuned.attach(LST(), num_classes=2, name="c") if change == "attach" else tuned.detach("b")
        done.append(change)

    changing = threading.Thread(target=act)
    changing.start()
    changing.join(0.2)
    assert changing.is_alive() and not done
    head.goes_on.set()
    for thread in (running, changing):
        thread.join()
    assert sorted(done) == sorted(["pass", change])


class Attaches(nn.Module):
    """A head that changes its own model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.act: Callable[[], object] = lambda: None

    def forward(self, features: Tensor) -> Tensor:
        self.act()
        return features * self.weight


def test_a_change_inside_of_a_pass_is_refused() -> None:
    head = Attaches()
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), head=head, show=False)
    head.act = lambda: tuned.attach(SSF(), name="b")
    with pytest.raises(vpeft.VpeftError, match="`attach` was called inside a forward pass"):
        tuned(torch.ones(1, 3, 32, 32))
    head.act = lambda: None
    tuned(torch.ones(1, 3, 32, 32))


def test_copies_and_pickles_have_no_lock_and_their_own_switch() -> None:
    tuned, images = two_adapters("lora"), torch.ones(1, 3, 32, 32)
    tuned.enable("first")
    expected = tuned(images)
    for twin in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert twin.active == "first"
        assert torch.equal(twin(images), expected)
        with twin.enable("second"):
            assert tuned.active == "first"
            assert not torch.allclose(twin(images), expected, atol=1e-3)
    with tuned.enable("second"):
        twin = copy.deepcopy(tuned)
        assert twin.active == "second"
    assert twin.active == "second" and torch.equal(twin(images), twin(images))


def test_one_tuned_model_inside_another() -> None:
    """The inner one's passes, switches and slots are its own."""
    inner = two_adapters("lst")
    images = torch.ones(1, 3, 32, 32)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

        def forward(self, features: Tensor) -> Tensor:
            with self.inner.enable("first"):
                return self.inner(images) * self.scale + features.mean()

    with inner.enable("first"):
        expected = inner(images)
    outer = vpeft.tune(tiny_vit(), LST(), head=Head(), show=False, verify=False).eval()
    features = outer.features(images)
    assert torch.allclose(outer(images), expected + features.mean(), atol=1e-5)
    assert inner.active == "second"


def test_passes_with_other_tensors_wait_and_equal_ones_do_not() -> None:
    guard, log = Guard(), list[str]()

    def install(name: str | None) -> None:
        log.append(f"install {name}")

    guard.begin("a", install)
    in_thread(lambda: (guard.begin("a", install), guard.end()))
    waiting = threading.Thread(target=lambda: (guard.begin("b", install), log.append("b runs"), guard.end()))
    waiting.start()
    time.sleep(0.05)
    assert log == ["install a"]
    guard.begin("a", install)  # a pass inside of a pass never waits for who waits for it
    guard.end()
    guard.end()
    waiting.join()
    assert log == ["install a", "install b", "b runs"]


def test_a_checkpointed_backward_of_each_thread_knows_its_adapter() -> None:
    tuned = two_adapters("lora")
    tuned.backbone.set_grad_checkpointing(True)
    images = torch.randn(2, 3, 32, 32)
    expected: dict[str, list[Tensor]] = {}

    def gradients(name: str) -> list[Tensor]:
        parameters = [p for _, p in tuned.trainable(name)]
        with tuned.enable(name):
            return list(torch.autograd.grad(tuned(images).square().sum(), parameters))

    for name in ("first", "second"):
        expected[name] = gradients(name)
    wrong: list[object] = []

    def work(name: str) -> None:
        for _ in range(20):
            try:
                for found, right in zip(gradients(name), expected[name], strict=True):
                    if not torch.allclose(found, right, atol=1e-4 * float(right.abs().max())):
                        wrong.append(name)
            except Exception as error:
                wrong.append(error)

    both = [threading.Thread(target=work, args=(name,)) for name in expected]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert not wrong


def test_a_with_that_began_in_one_task_is_not_seen_by_another() -> None:
    tuned = two_adapters("bitfit")

    async def inside(entered: asyncio.Event, ends: asyncio.Event) -> None:
        with tuned.enable("first"):
            entered.set()
            await ends.wait()
            assert tuned.active == "first"

    async def main() -> Iterator[str] | None:
        entered, ends = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(inside(entered, ends))
        await entered.wait()
        assert tuned.active == "second"
        ends.set()
        await task
        return None

    asyncio.run(main())


def test_moving_statistics_belong_to_the_pass() -> None:
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_efficientnet(), BitFit(), num_classes=3, statistics="adapt", name="first", show=False)
    tuned.attach(BitFit(), num_classes=3, statistics="adapt", name="second")
    with torch.no_grad():
        for name in ("first", "second"):
            for key, tensor in tuned.adapter_state(name).items():
                if key.endswith("running_mean"):
                    tensor.add_(torch.randn_like(tensor))
    threads(lambda: tuned.eval(), [torch.randn(2, 3, 64, 64) for _ in range(2)], rounds=10)


@pytest.mark.parametrize("name", ["lora", "lst"])
def test_a_compiled_model_runs_one_pass_at_a_time(name: str) -> None:
    """Compiled code reads no context variable; what it shares with the hooks around it must not mix either."""
    tuned, images = two_adapters(name), [torch.randn(2, 3, 32, 32) for _ in range(2)]
    with torch.no_grad():
        expected = [tuned(image) for image in images]
    torch.compiler.reset()
    for block in tuned.description.blocks:
        assert block.exit is not None
        block.exit.module.compile(fullgraph=True, backend="eager")
    tuned._wiring.switch.compiled += 1  # as `tuned.compile` does, which takes no backend
    with torch.no_grad():
        for image, out in zip(images, expected, strict=True):
            assert torch.allclose(tuned(image), out, atol=1e-5)
    threads(lambda: tuned, images, rounds=20)


def test_a_choice_of_another_thread_does_not_enter_the_pass_of_compiled_code() -> None:
    """What compiled code reads is written where a thread chooses; never while the pass of another thread is open."""
    tuned = two_adapters("lora")
    switch = tuned._wiring.switch
    switch.compiled += 1
    chooses, opened = threading.Event(), threading.Event()

    class Slow(type(switch)):  # type: ignore[misc]
        @property
        def choice(self) -> Any:
            if threading.current_thread().name == "follows":
                chooses.set()
                opened.wait(0.3)  # the time in which the other thread opens its pass, if nothing holds it back
            return super().choice

    def follows() -> None:
        with tuned.enable("first"):
            threading.current_thread().name = "follows"
            switch.follow()
            threading.current_thread().name = "has followed"

    switch.__class__ = Slow
    other = threading.Thread(target=follows)
    other.start()
    assert chooses.wait(5)
    with tuned.enable("second"), switch.run(lambda name: None) as made:
        opened.set()
        other.join(5)
        assert made.on == "second"


def test_blocks_run_again_in_a_thread_of_autograds_own() -> None:
    """On an accelerator the backward pass has a thread that knows no `with enable`; here it is any other thread."""
    tuned, images = two_adapters("lora"), torch.randn(2, 3, 32, 32)
    parameters = [p for _, p in tuned.trainable("first")]
    with tuned.enable("first"):
        expected = torch.autograd.grad(tuned(images).square().sum(), parameters)
        tuned.backbone.set_grad_checkpointing(True)
        tuned._wiring.switch.forget()
        loss = tuned(images).square().sum()
        found = in_thread(lambda: torch.autograd.grad(loss, parameters))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5 * float(other.abs().max()))
    assert not tuned._wiring.switch._again, "what was read for a backward pass is given up at its end"
