"""PT-PEFT: its two parts together, and what learns in which stage."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch

import vpeft
from tests.golden.by_hand import randomise
from vpeft.methods import PTPEFT, Adapter, LoRA, PrefixTuning, VPTDeep

Peft = Literal["lora", "adapter", "prompt"]
IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
DATA = [(image, number % 2) for number, image in enumerate(IMAGES)]


def tuned_with(method: vpeft.Method | tuple[vpeft.Method, ...]) -> vpeft.TunedModel:
    torch.manual_seed(1)
    given = method if isinstance(method, tuple) else (method,)
    return vpeft.tune(vpeft.create_backbone("pocket_vit"), *given, num_classes=2, show=False)


@pytest.mark.parametrize("peft", ["lora", "adapter", "prompt"])
def test_it_equals_its_parts_together(peft: Peft) -> None:
    later = {"lora": LoRA(rank=4), "adapter": Adapter(bottleneck=4), "prompt": VPTDeep(tokens=3)}[peft]
    one = tuned_with(PTPEFT(length=5, form="direct", peft=peft, rank=4, bottleneck=4, tokens=3)).eval()
    parts = tuned_with((PrefixTuning(length=5), later)).eval()
    randomise(one, 0.2)
    with torch.no_grad():
        for (_, value), (_, other) in zip(one.trainable(), parts.trainable(), strict=True):
            other.copy_(value)
        assert torch.equal(one(IMAGES), parts(IMAGES))


@pytest.mark.parametrize("peft", ["lora", "adapter", "prompt"])
@pytest.mark.parametrize("keep", ["trained", pytest.param("frozen", marks=pytest.mark.slow)])
def test_what_learns_in_which_stage(peft: Peft, keep: Literal["trained", "frozen"]) -> None:
    method = PTPEFT(length=3, hidden=4, peft=peft, rank=2, bottleneck=2, tokens=2, keep=keep)
    tuned = tuned_with(method).train()
    alone = tuned_with(PrefixTuning(length=3, form="mlp", hidden=4)).train()
    prefix = {name for name, _ in alone.trainable() if not name.startswith("head.")}
    with torch.no_grad():
        own = dict(tuned.trainable())
        for name, value in alone.trainable():
            value.copy_(own[name])
    optimiser = torch.optim.AdamW([value for _, value in tuned.trainable()], lr=1e-2)
    single = torch.optim.AdamW([value for _, value in alone.trainable()], lr=1e-2)
    labels = torch.arange(8) % 2
    for step in range(4):
        tuned.advance(step / 8)
        for model, rule in ((tuned, optimiser), (alone, single)):
            rule.zero_grad()
            torch.nn.functional.cross_entropy(model(IMAGES), labels).backward()
            model.after_backward()
            rule.step()
    # stage 1 is prefix tuning, bit by bit
    for name, value in alone.trainable():
        assert torch.equal(dict(tuned.trainable())[name], value)
    tuned.eval()
    with torch.no_grad():
        first = tuned(IMAGES)
        assert torch.equal(first, alone.eval()(IMAGES))
        tuned.advance(0.5)
        assert torch.equal(tuned(IMAGES), first) == (peft != "prompt")
    tuned.train()
    before = {name: value.detach().clone() for name, value in tuned.trainable()}
    for step in range(4, 7):
        tuned.advance(step / 8)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(tuned(IMAGES), labels).backward()
        tuned.after_backward()
        optimiser.step()
    for name, value in tuned.trainable():
        moved = not torch.equal(value, before[name])
        assert moved == (name not in prefix or keep == "trained"), name


def test_one_training_runs_both_stages_and_the_file_has_both(tmp_path: Path) -> None:
    tuned = tuned_with(PTPEFT(length=2, hidden=4, peft="prompt", tokens=2))
    settings = vpeft.Optimisation(epochs=4, batch=4, lr=1e-2)
    vpeft.fit(tuned, DATA, optimisation=settings, progress=False)
    tuned.eval()
    with torch.no_grad():
        again = vpeft.load(vpeft.create_backbone("pocket_vit"), tuned.save(tmp_path / "pt.safetensors")).eval()
        assert torch.equal(again(IMAGES), tuned(IMAGES))


def test_counts_on_vit_base() -> None:
    with torch.device("meta"):
        made = vpeft.create_backbone("vit_base_patch16_224", pretrained=False)
        method = PTPEFT(length=16, form="direct", rank=8)
        plan = vpeft.tune(made, method, verify=False, show=False).plan()
    assert plan.trainable == 294_912 + 294_912
