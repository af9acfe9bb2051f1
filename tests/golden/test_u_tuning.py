"""U-Tuning against a restatement, as its parts, and its counts."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.models import FAMILIES, images_for, tiny_convnext, tiny_vit
from vpeft.methods import UTuner, UTuning


def restated(layer: nn.Module, form: str, x: Tensor) -> Tensor:
    if form == "adapter":
        return F.relu(x @ layer.down.weight.T + layer.down.bias) @ layer.up.weight.T + layer.up.bias
    if form == "scale":
        return x * layer.scale
    weights = (x @ layer.keys.T / 48**0.5).softmax(-1)
    return layer.gate * (weights @ (layer.keys if form == "prompt" else layer.values))


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    ("attention", "mlp", "whole"),
    [
        ("adapter", "adapter", "none"),
        ("prefix", "scale", "none"),
        ("prompt", "adapter", "prefix"),
        ("none", "scale", "adapter"),
    ],
)
def test_equals_a_restatement(attention: str, mlp: str, whole: str, normed: bool) -> None:
    plain = tiny_vit(init_values=0.5)
    method = UTuning(attention=attention, mlp=mlp, block=whole, normed=normed)
    tuned = vpeft.tune(copy.deepcopy(plain), method, show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter, std=0.4)
    images = images_for(plain)

    def tuner(i: int, place: str, form: str, x: Tensor) -> Tensor:
        if form == "none":
            return torch.zeros_like(x)
        key = (
            f"blocks.{i}.after.tuner"
            if place == "block"
            else f"blocks.{i}.{place}{'' if normed else '_branch'}.parallel"
        )
        return restated(tuned.adapter().get_submodule(key), form, x)

    x = plain._pos_embed(plain.patch_embed(images))
    for i, block in enumerate(plain.blocks):
        came, u = x, block.norm1(x)
        side = tuner(i, "attn", attention, u if normed else x)
        x = x + (block.ls1(block.attn(u) + side) if normed else block.ls1(block.attn(u)) + side)
        w = block.norm2(x)
        side = tuner(i, "mlp", mlp, w if normed else x)
        x = x + (block.ls2(block.mlp(w) + side) if normed else block.ls2(block.mlp(w)) + side)
        x = x + tuner(i, "block", whole, came)
    assert torch.allclose(tuned.features(images), plain.norm(x)[:, 0], atol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_its_parts_attached_together_are_it(family: str) -> None:
    plain = FAMILIES[family]()
    images = images_for(plain)
    attention = "none" if family == "timm_convnext" else "prefix"
    method = UTuning(attention=attention, mlp="scale", block="adapter")
    one = vpeft.tune(copy.deepcopy(plain), method, show=False)
    for _, parameter in one.trainable():
        torch.nn.init.normal_(parameter, std=0.3)
    several = vpeft.tune(copy.deepcopy(plain), *method.parts, show=False)
    several.load_adapter_state(one.adapter_state())
    assert torch.equal(one.features(images), several.features(images))
    assert not torch.allclose(one.features(images), plain.forward_head(plain.forward_features(images), pre_logits=True))


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (UTuning(), 313_536),
        (UTuning(attention="prefix", mlp="none"), 12 * (2 * 10 * 768 + 1)),
        (UTuning(attention="prompt", mlp="scale"), 12 * (10 * 768 + 1 + 768)),
    ],
)
def test_counts(method: UTuning, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert vpeft.tune(backbone, method, verify=False, show=False).plan().trainable == count


@pytest.mark.parametrize("method", [UTuning(), UTuner()])
def test_attention_is_asked_for(method: UTuning | UTuner) -> None:
    with pytest.raises(vpeft.MissingPlace, match="attn"):
        vpeft.tune(tiny_convnext(), method)
