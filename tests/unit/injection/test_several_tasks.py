"""One adapter that serves several tasks: layers know which is on, each head reads its own, and tasks do not mix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vpeft
from tests.models import images_for, tiny_swin, tiny_vit
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.injection.adapter import AdapterError
from vpeft.method import ONE_TASK, BadField, Method
from vpeft.methods import LoRA

SIZES = {"a": 3, "b": 2, "c": 4}
HEADS = {name: (lambda _, width, n=size: nn.Linear(width, n)) for name, size in SIZES.items()}


class OwnLinear(nn.Module):
    """x -> the linear map of the task that is on."""

    wants_tasks = True

    def __init__(self, width: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.own = nn.ModuleDict({task: nn.Linear(width, width) for task in tasks})

    def forward(self, x: Tensor, *, tasks: tuple[str, ...]) -> Tensor:
        (task,) = tasks
        out: Tensor = self.own[task](x)
        return out


class OwnFeatures(OwnLinear):
    """x -> {task: its own linear map of x}, for the heads."""

    gives_task_features = True

    def forward(self, x: Tensor, *, tasks: tuple[str, ...]) -> dict[str, Tensor]:  # type: ignore[override]
        return {task: self.own[task](x) for task in tasks}


class PerTask(Method):
    """A layer of each task's own in each block."""

    tasks: tuple[str, ...] = ()

    @property
    def runs_per_task(self) -> bool:
        return True

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            yield block.mlp_branch.parallel(OwnLinear(block.dim, self.tasks or (ONE_TASK,)))


class InOnePass(Method):
    """A layer of each task's own behind the trunk."""

    tasks: tuple[str, ...] = ()

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield backbone.outlet.tap(OwnFeatures(backbone.facts.width, self.tasks or (ONE_TASK,)))


METHODS = [PerTask, InOnePass, lambda: LoRA(rank=2)]


def tuned_for(method: Method, names: str = "abc", model: nn.Module | None = None) -> vpeft.TunedModel:
    """A model with heads for some of the tasks, the same tensors for the same task whichever others there are."""
    torch.manual_seed(0)  # of the frozen weights
    heads = {name: HEADS[name] for name in names}
    tuned = vpeft.tune(tiny_vit() if model is None else model, method, head=heads)
    with torch.no_grad():
        for key, parameter in tuned.trainable():
            seed = sum(map(ord, key))
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.2)
    return tuned.eval()


@pytest.mark.parametrize("make", METHODS)
def test_a_batch_names_its_task_or_is_for_all(make: type[Method]) -> None:
    tuned, images = tuned_for(make()), images_for(tiny_vit())
    every = tuned(images)
    assert {name: tuple(out.shape) for name, out in every.items()} == {name: (2, n) for name, n in SIZES.items()}
    for name in SIZES:
        assert torch.equal(tuned(images, batch=vpeft.Batch(images, task=name)), every[name])
    with tuned.for_tasks("b", "c"):
        some = tuned(images)
    assert list(some) == ["b", "c"]
    assert torch.equal(some["c"], every["c"])


@pytest.mark.parametrize("make", METHODS)
def test_a_task_is_what_it_is_without_the_others(make: type[Method]) -> None:
    images = images_for(tiny_vit())
    assert torch.equal(tuned_for(make(), "b")(images)["b"], tuned_for(make(), "abc")(images)["b"])


def test_tasks_differ_where_their_layers_do() -> None:
    tuned, images = tuned_for(PerTask()), images_for(tiny_vit())
    with tuned.for_tasks("a"):
        first = tuned.features(images)
    with tuned.for_tasks("b"):
        assert not torch.allclose(first, tuned.features(images))
    with pytest.raises(AdapterError, match="for_tasks"):
        tuned.features(images)


@pytest.mark.parametrize("make", [PerTask, InOnePass])
def test_gradients_reach_the_tensors_of_the_tasks_in_the_batch_alone(make: type[Method]) -> None:
    tuned, images = tuned_for(make()), images_for(tiny_vit())
    tuned(images, batch=vpeft.Batch(images, task="b")).sum().backward()
    for key, parameter in tuned.trainable():
        of_b = ".own.b." in key or key.startswith("head.b.")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == of_b, key


def test_several_tasks_add_their_gradients() -> None:
    images = images_for(tiny_vit())
    whole, parts = tuned_for(LoRA(rank=2)), tuned_for(LoRA(rank=2))
    sum(out.square().sum() for out in whole(images).values()).backward()
    for name in SIZES:
        parts(images, batch=vpeft.Batch(images, task=name)).square().sum().backward()
    for (key, one), (_, other) in zip(whole.trainable(), parts.trainable(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("make", [PerTask, InOnePass])
def test_threads_have_tasks_of_their_own(make: type[Method]) -> None:
    tuned, images = tuned_for(make()), images_for(tiny_vit())
    expected = tuned(images)
    wrong: list[str] = []

    def run(name: str) -> None:
        for _ in range(10):
            with tuned.for_tasks(name), torch.no_grad():
                if not torch.equal(tuned(images)[name], expected[name]):
                    wrong.append(name)

    running = [threading.Thread(target=run, args=(name,)) for name in SIZES]
    for one in running:
        one.start()
    for one in running:
        one.join()
    assert not wrong


@pytest.mark.parametrize("make", [PerTask, InOnePass])
def test_one_head_is_one_task(make: type[Method]) -> None:
    tuned = vpeft.tune(tiny_vit(), make(), num_classes=3)
    assert tuned.tasks() == (ONE_TASK,)
    assert tuned(images_for(tiny_vit())).shape == (2, 3)
    assert tuned.methods()[0].tasks == ()


def test_the_plan_says_how_often_the_trunk_runs() -> None:
    assert "the trunk runs once for each of 3 tasks (a, b, c)" in tuned_for(PerTask()).plan().totals()
    assert "the trunk runs once for all tasks (a, b, c)" in tuned_for(InOnePass()).plan().totals()
    assert "trunk runs" not in vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3).plan().totals()


def test_features_of_a_map_reach_the_head_of_their_task() -> None:
    class Head(vpeft.Head):
        reads = ("stages.1",)

        def forward(self, features: object, batch: object = None) -> Tensor:
            return features.map("stages.1")  # type: ignore[attr-defined,no-any-return]

    class OfStage(InOnePass):
        def edits(self, backbone: Backbone) -> Iterator[Edit]:
            stage = backbone.stages[1]
            yield stage.tap(OwnFeatures(stage.width, self.tasks or (ONE_TASK,)))

    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_swin(), OfStage(), head={"a": Head(), "b": Head()}).eval()
    torch.manual_seed(0)
    frozen = vpeft.tune(tiny_swin(), LoRA(rank=2), head=Head()).eval()
    images = images_for(tiny_swin())
    with torch.no_grad():
        outputs, plain = tuned(images), frozen(images)
    layers = tuned.adapters["default"].get_submodule("stages.1.tap")
    for name in "ab":
        torch.testing.assert_close(outputs[name].movedim(1, -1), layers.own[name](plain.movedim(1, -1)))


def test_wrong_names_are_refused() -> None:
    tuned = tuned_for(LoRA(rank=2))
    with pytest.raises(AdapterError, match="no head for the task 'd'. It has: a, b, c"):
        tuned(images_for(tiny_vit()), batch=vpeft.Batch(images_for(tiny_vit()), task="d"))
    with pytest.raises(AdapterError, match="Which tasks"), tuned.for_tasks("d"):
        pass
    with pytest.raises(BadField, match="has layers for the tasks x, y"):
        vpeft.tune(tiny_vit(), PerTask(tasks=("x", "y")), head=HEADS)
    with pytest.raises(AdapterError, match="cannot be the name of a task"):
        vpeft.tune(tiny_vit(), LoRA(rank=2), head={"train": HEADS["a"]})


def test_a_file_holds_all_heads_and_the_tasks_of_the_layers(tmp_path: Path) -> None:
    def heads() -> dict[str, object]:
        from vpeft.head import get_head

        return {name: (lambda _, width, n=size: get_head("linear")(width, n)) for name, size in SIZES.items()}

    images = images_for(tiny_vit())
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), head=heads()).eval()  # type: ignore[arg-type]
    torch.manual_seed(0)
    again = vpeft.load(tiny_vit(), tuned.save(tmp_path / "a.safetensors")).eval()
    assert again.tasks() == tuple(SIZES)
    for name, out in tuned(images).items():
        assert torch.equal(out, again(images)[name])
