"""E3VA against a restatement on Swin and ViT, the published counts, and what it keeps in memory."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import E3VA


def _randomise(tuned: vpeft.TunedModel) -> dict[str, Tensor]:
    for key, parameter in tuned.trainable():
        if "unfreeze" not in key:
            nn.init.normal_(parameter, std=0.3)
    return {key.partition("before.")[2]: value.detach() for key, value in tuned.trainable()}


def _adapter(p: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    down = p[f"{key}.down.1.weight"] @ p[f"{key}.down.0.weight"]
    up = p[f"{key}.up.weight"] @ p[f"{key}.inner.weight"]
    return F.gelu(x @ down.T + p[f"{key}.down.1.bias"]) @ up.T + p[f"{key}.up.bias"]


@pytest.mark.parametrize("merging", ["difference", "highway"])
def test_equals_a_restatement_on_swin(merging: str) -> None:
    model = tiny_swin()
    images = images_for(model)
    tuned = vpeft.tune(model, E3VA(rank=3, merging=merging), show=False).eval()
    p = _randomise(tuned)
    with tuned.disable(), torch.no_grad():
        x, y = model.patch_embed(images), torch.zeros(2, 16, 16, 24)
        for s, layer in enumerate(model.layers):
            if s:
                merge = layer.downsample
                y = merge(x + y) - merge(x) if merging == "difference" else merge(y)
            x = layer.downsample(x)
            for b, block in enumerate(layer.blocks):
                attn = block._attn(block.norm1(x))
                x = x + attn
                mlp = block.mlp(block.norm2(x))
                x = x + mlp
                y = y + _adapter(p, f"stages.{s}.{2 * b}", attn) + _adapter(p, f"stages.{s}.{2 * b + 1}", mlp)
        expected = model.forward_head(model.norm(x + y))
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)


def test_equals_a_restatement_on_vit() -> None:
    model = tiny_vit()
    images = images_for(model)
    tuned = vpeft.tune(model, E3VA(rank=3), show=False).eval()
    p = _randomise(tuned)
    with tuned.disable(), torch.no_grad():
        x, y = model._pos_embed(model.patch_embed(images)), 0.0
        for b, block in enumerate(model.blocks):
            attn = block.attn(block.norm1(x))
            x = x + attn
            mlp = block.mlp(block.norm2(x))
            x = x + mlp
            y = y + _adapter(p, f"stages.0.{2 * b}", attn) + _adapter(p, f"stages.0.{2 * b + 1}", mlp)
        expected = model.norm(x + y)[:, 0]
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "printed", "adapters", "last"),
    [("swin_base_patch4_window7_224", 1.20, 1_191_168, 1024), ("swin_large_patch4_window7_224", 1.79, 1_786_752, 1536)],
)
def test_count_is_the_published_one(name: str, printed: float, adapters: int, last: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    plan = vpeft.tune(model, E3VA(), verify=False, show=False).plan()
    assert plan.trainable == adapters + 2 * last
    norms = 2 * (last + last // 2 + last // 4 + last // 8)  # dense prediction has a norm at each of four outputs
    assert round((adapters + norms) / 1e6, 2) == printed
    assert plan.reach == "none"


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_nothing_of_the_trunk_is_saved_but_the_branches(make: type) -> None:
    model = make()
    images = images_for(model)
    saved = saved_by(vpeft.tune(model, E3VA(), num_classes=3, show=False), images)
    assert sum(saved.within) == 0
    assert saved.beyond == []


def test_step_zero_is_the_frozen_model_unless_the_highway_passes_a_norm() -> None:
    model = tiny_swin()
    images = images_for(model)
    plain = model(images)
    tuned = vpeft.tune(model, E3VA(), show=False).eval()
    assert torch.allclose(tuned.features(images), plain, atol=1e-6)
    tuned.detach()
    literal = vpeft.tune(model, E3VA(merging="highway"), show=False).eval()
    assert not torch.allclose(literal.features(images), plain, atol=1e-3)  # M(0) is the norm's bias, reduced
