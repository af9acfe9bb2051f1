"""A backbone in 16 bits: adapters and head stay in 32, products follow the backbone; it trains, merges and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import vpeft
from tests.contract.matrix import cell_or_refusal
from tests.models import images_for, tiny_convnext, tiny_swin
from tests.models import tiny_vit as _vit
from tests.unit.training.material import Patches
from vpeft.method import all_methods, get_method
from vpeft.methods import LoRA

HALF = (torch.bfloat16, torch.float16)


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return _vit()


MAKERS = {"vit": tiny_vit, "swin": tiny_swin, "convnext": tiny_convnext}


def _moved(tuned: vpeft.TunedModel) -> vpeft.TunedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.02)
    return tuned


@pytest.mark.parametrize("kind", HALF, ids=str)
@pytest.mark.parametrize("name", sorted(all_methods()))
def test_every_method_follows_a_vit_in_16_bits(name: str, kind: torch.dtype) -> None:
    cell, refusal = cell_or_refusal(name, "timm_vit")
    if cell is None:
        pytest.skip(f"refused: {refusal}")
    method, images = cell.method, torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    # From the same rounded weights, as methods that factor a weight start from what they are given.
    whole = _moved(vpeft.tune(tiny_vit().to(kind).float(), method, num_classes=3))
    torch.manual_seed(0)
    tuned = _moved(vpeft.tune(tiny_vit().to(kind), method, num_classes=3))
    for key, parameter in tuned.trainable():
        assert parameter.dtype == (kind if ".unfreeze" in key else torch.float32), key
    expected, seen = whole(images), tuned(images)
    assert seen.isfinite().all()
    assert torch.allclose(seen.float(), expected, atol=0.1 * float(expected.detach().abs().max())), name
    seen.float().square().sum().backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for _, parameter in tuned.trainable())


@pytest.mark.parametrize("make", MAKERS)
def test_the_stream_stays_in_16_bits(make: str) -> None:
    model = MAKERS[make]().bfloat16()
    seen: set[torch.dtype] = set()
    tuned = vpeft.tune(model, LoRA(rank=2), vpeft.methods.AdaptFormer(), num_classes=3)
    for block in tuned.description.blocks:
        assert block.exit is not None
        block.exit.module.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    tuned(images_for(model).float())
    assert seen == {torch.bfloat16}


def test_training_evaluation_and_a_head_in_16_bits() -> None:
    data = Patches(24)
    for head in (None, torch.nn.Linear(48, 3).bfloat16()):
        tuned = vpeft.tune(tiny_vit().bfloat16(), LoRA(rank=2), num_classes=None if head else 3, head=head)
        settings = vpeft.Optimisation(epochs=3, batch=8, lr=5e-3)
        result = vpeft.fit(tuned, data, optimisation=settings, progress=False)
        assert result.history[-1].train_loss < result.history[0].train_loss
        assert vpeft.evaluate(tuned, data).count == 24


@pytest.mark.parametrize("name", ["lora", "ssf", "repadapter", "dora" if "dora" in all_methods() else "ssb"])
def test_merged_weights_stay_in_16_bits(name: str) -> None:
    tuned = _moved(vpeft.tune(tiny_vit().bfloat16(), get_method(name)(), num_classes=3)).eval()
    images = torch.randn(2, 3, 32, 32)
    before, plain = tuned(images), {key: value.clone() for key, value in tuned.backbone.state_dict().items()}
    tuned.merge()
    assert {value.dtype for value in tuned.backbone.parameters()} == {torch.bfloat16}
    assert torch.allclose(tuned(images), before, atol=0.1 * float(before.detach().abs().max()))
    tuned.unmerge()
    assert all(torch.equal(value, plain[key]) for key, value in tuned.backbone.state_dict().items())


def test_an_adapter_in_32_bits_is_saved_and_loaded_exactly(tmp_path: Path) -> None:
    tuned = _moved(vpeft.tune(tiny_vit().bfloat16(), LoRA(rank=2), num_classes=3))
    path = tuned.save(tmp_path / "a.safetensors", labels=list("abc"))
    images = torch.randn(2, 3, 32, 32)
    again = vpeft.load(tiny_vit().bfloat16(), path)
    assert torch.equal(again(images), tuned(images))
    assert {value.dtype for value in again.adapter_state().values()} == {torch.float32}


def test_a_caller_who_wants_it_all_in_16_bits_converts() -> None:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), num_classes=3).bfloat16()
    assert {value.dtype for value in tuned.adapter_state().values()} == {torch.bfloat16}
    assert tuned(torch.randn(2, 3, 32, 32)).dtype == torch.bfloat16
