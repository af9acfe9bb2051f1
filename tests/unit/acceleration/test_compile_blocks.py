"""Compiled blocks as an acceleration: what it refuses, what it leaves behind, and the numbers of compiled steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.models import tiny_vit
from tests.unit.training.material import Patches, tuned_vit, weights
from vpeft.acceleration.apply import accelerate
from vpeft.acceleration.names import FOR_MEMORY, NAMES, wanted
from vpeft.acceleration.prefix_cache import Situation
from vpeft.injection.tuned_model import TunedModel
from vpeft.methods import get
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.together import fit_together

# torch's own compiler warns of things that it does itself.
compiles = pytest.mark.filterwarnings("ignore")


def tuned_with(name: str) -> TunedModel:
    torch.manual_seed(0)
    return vpeft.tune(tiny_vit(), get(name)(), num_classes=3, show=False, verify=False).train()


def graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class Seen:
    """Stands for torch.compile: the function itself, and how often it was called."""

    def __init__(self) -> None:
        self.calls, self.options = 0, dict[str, Any]()

    def __call__(self, function: Any, **options: Any) -> Any:
        self.options = options

        def run(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        return run


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    stand_in = Seen()
    monkeypatch.setattr(torch, "compile", stand_in)
    return stand_in


def test_it_is_used_on_request_and_is_no_way_to_save_memory() -> None:
    assert "compile_blocks" not in wanted("auto")
    assert wanted("auto,compile_blocks")[-1] == "compile_blocks" == list(NAMES)[-1]
    assert "compile_blocks" not in FOR_MEMORY


def test_training_is_compiled_and_nothing_else(seen: Seen) -> None:
    tuned = tuned_with("lora")
    made = accelerate(tuned, "compile_blocks")
    assert made.lines()[0].startswith("+ compile_blocks: 3 blocks are compiled in 0 s, in 0 graphs; 0% less kept")
    assert seen.options == {"fullgraph": True, "options": {"fallback_random": True}}
    for mode, count, calls in ((True, 2, 3), (True, 1, 0), (False, 2, 0)):
        tuned.train(mode)
        seen.calls = 0
        tuned(torch.randn(count, 3, 32, 32))
        assert seen.calls == calls, (mode, count)
    tuned.train()
    with torch.no_grad():
        tuned(torch.randn(2, 3, 32, 32))
    assert seen.calls == 0
    made.close()
    tuned(torch.randn(2, 3, 32, 32))
    assert seen.calls == 0


def test_names_copies_and_classes_do_not_show_it(seen: Seen) -> None:
    tuned = tuned_with("vpt_deep")
    names, classes = list(tuned.state_dict()), [type(module) for module in tuned.modules()]
    modules = [name for name, _ in tuned.named_modules()]
    made = accelerate(tuned, "compile_blocks")
    assert made.outcomes[0].applied
    assert list(tuned.state_dict()) == names
    assert [name for name, _ in tuned.named_modules()] == modules
    twin = copy.deepcopy(tuned)
    assert all(module._compiled_call_impl is None for module in twin.modules())
    made.close()
    assert all(module._compiled_call_impl is None for module in tuned.modules())
    assert [type(module) for module in tuned.modules()] == classes
    assert not [key for module in tuned.backbone.modules() for key in module.__dict__ if "compiled" in key]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("recompute_blocks", "recompute_blocks runs every block again"),
        ("low_memory", "low_memory decides what is recomputed"),
    ],
)
def test_ways_to_save_memory_come_first(first: str, reason: str, seen: Seen) -> None:
    made = accelerate(tuned_with("lora"), f"{first},compile_blocks")
    assert [outcome.name for outcome in made.outcomes if outcome.applied] == [first]
    assert reason in made.lines()[1]
    assert not seen.calls


def test_what_would_be_compiled_anew_each_time_is_refused(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(get("lora"), "advance", lambda self, tuned, progress: None)
        made = accelerate(tuned_with("lora"), "compile_blocks")
        assert "the method changes the model during training" in made.lines()[0]
    from torch._dynamo.utils import counters

    plain, tuned = seen.__call__, tuned_with("lora")

    def each_time(function: Any, **options: Any) -> Any:
        run = plain(function, **options)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counters["stats"]["unique_graphs"] += 1
            return run(*args, **kwargs)

        return counted

    monkeypatch.setattr(torch, "compile", each_time)
    made = accelerate(tuned, "compile_blocks")
    assert "something in a block changes with every step" in made.lines()[0]
    assert all(module._compiled_call_impl is None for module in tuned.modules())


def test_without_a_compiler_it_says_what_to_install() -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        made = accelerate(tuned_with("lora"), "compile_blocks")
    assert made.lines() == [
        "- compile_blocks: torch.compile needs a C++ compiler here, and there is none; install g++ or clang++, or name"
        " one in CXX"
    ]


def test_a_backbone_that_is_compiled_in_part_is_left_alone() -> None:
    tuned = tuned_with("lora")
    block = tuned.description.blocks[0].exit
    assert block is not None
    block.module.compile(backend="eager")
    assert "compiled already" in accelerate(tuned, "compile_blocks").lines()[0]


def test_where_the_trunk_is_recorded_there_is_nothing_to_compile(seen: Seen) -> None:
    made = accelerate(
        tuned_with("linear_probe"),
        "frozen_prefix,compile_blocks",
        situation=Situation(Patches(4), None, 2, 2, nullcontext),
    )
    assert made.lines()[1] == "- compile_blocks: the whole trunk is cached, and no block runs"
    made.close()


def test_only_blocks_behind_the_records_are_compiled(seen: Seen) -> None:
    tuned = tuned_with("partial_k")
    made = accelerate(tuned, "frozen_prefix,compile_blocks", situation=Situation(Patches(4), None, 2, 2, nullcontext))
    assert [outcome.applied for outcome in made.outcomes] == [True, True], made.lines()
    assert "1 blocks are compiled" in made.lines()[1]
    made.close()


def test_runs_that_share_batches_are_not_compiled(seen: Seen) -> None:
    images, settings = (
        Patches(8, noise=0.1),
        Optimisation(epochs=1, batch=4, acceleration="frozen_prefix,compile_blocks"),
    )
    fit_together([Run(tuned_with("partial_k"), settings) for _ in range(2)], images, progress=False)
    assert not seen.options
    fit(tuned_with("partial_k"), images, optimisation=settings, progress=False)
    assert seen.options


def stepped(
    tuned: TunedModel, choice: str, file: Path | None = None, precision: str = "fp32"
) -> tuple[list[Tensor], Tensor]:
    """Losses and gradients of three AdamW steps, the last on fewer images, and logits afterwards."""
    device = next(tuned.parameters()).device
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 3, 32, 32, generator=generator).to(device)
    labels = torch.tensor([0, 1, 2, 0, 1, 2], device=device)

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=torch.bfloat16)

    made = accelerate(tuned, choice, autocast=autocast, precision=precision)
    wants = "compile_blocks" in choice
    assert [o.applied for o in made.outcomes if o.name == "compile_blocks"] == [True] * wants, made.lines()
    optimiser = torch.optim.AdamW([p for _, p in tuned.trainable()], lr=1e-3)
    before, found = graphs(), []
    for count in (6, 6, 4):
        with autocast():
            logits = tuned(images[:count])
        loss = F.cross_entropy(logits.float(), labels[:count])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        found += [loss.detach().clone(), *(p.grad.clone() for _, p in tuned.trainable() if p.grad is not None)]
        optimiser.step()
    assert graphs() == before, "a step was compiled anew"
    if file is not None:
        tuned.save(file)
    tuned.eval()
    with torch.no_grad():
        logits = tuned(images)
    assert graphs() == before, "evaluation was compiled"
    made.close()
    with torch.no_grad():
        assert torch.equal(tuned(images), logits)
    return found, logits


def close(one: list[Tensor], other: list[Tensor]) -> bool:
    """To rounding, each tensor measured by its largest value; gradients that are nothing but rounding are left out."""
    assert len(one) == len(other)
    largest = max(float(value.abs().max()) for value in one)
    return all(
        float((a - b).abs().max()) <= 1e-3 * max(float(a.abs().max()), 1e-3 * largest)
        for a, b in zip(one, other, strict=True)
    )


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "ssf", "adaptformer", "vpt_deep"])
def test_steps_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    plain, _ = stepped(tuned_with(name), "off")
    fast, logits = stepped(tuned_with(name), "auto,compile_blocks", file)
    assert close(plain, fast)
    torch.manual_seed(0)
    again = vpeft.load(tiny_vit(), file)
    again.eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        assert torch.allclose(again(torch.randn(6, 3, 32, 32, generator=generator)), logits, atol=1e-5)


@compiles
@pytest.mark.slow
def test_dropout_drop_path_and_records_act_as_without_it() -> None:
    settings = Optimisation(epochs=2, batch=4)

    def after(tuned: TunedModel, choice: str) -> dict[str, Tensor]:
        fit(tuned, Patches(10), optimisation=settings, acceleration=choice, progress=False)
        return weights(tuned)

    cases: list[tuple[Callable[[], TunedModel], str]] = [
        (tuned_vit, "class_token_only"),
        (lambda: tuned_with("partial_k"), "frozen_prefix"),
    ]
    for make, others in cases:
        before = graphs()
        fast = after(make(), f"{others},compile_blocks")
        assert graphs() > before
        plain = after(make(), others)
        for name, value in plain.items():
            assert math.isclose(float((fast[name] - value).norm()), 0, abs_tol=1e-3 * float(value.norm())), name


@compiles
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["lora", "ssf", "adaptformer", "vpt_deep"])
def test_cuda_graphs_give_the_same_steps(name: str) -> None:
    plain, _ = stepped(tuned_with(name).cuda(), "off")
    fast, _ = stepped(tuned_with(name).cuda(), "auto,compile_blocks")
    assert close(plain, fast)
