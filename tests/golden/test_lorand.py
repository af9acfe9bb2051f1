"""LoRand against a restatement, and the published counts."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import LoRand


def restated(layer: nn.Module, x: Tensor) -> Tensor:
    for name in ("down", "up"):
        part = layer.get_submodule(name)
        W = sum(part.A[i] @ part.G[i] @ part.B[i] for i in range(len(part.A)))
        if name == "down":
            hidden = F.gelu(x @ W + part.bias)
    return x + hidden @ W + part.bias


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin])
def test_equals_a_restatement(make: type[nn.Module]) -> None:
    plain = make(**({"init_values": 0.5} if make is tiny_vit else {}))
    tuned = vpeft.tune(copy.deepcopy(plain), LoRand(branches=3, kernel=4, factor=4), show=False)
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter, std=0.3)
    images, places = images_for(plain), tuned.adapter()
    if make is tiny_vit:
        x = plain._pos_embed(plain.patch_embed(images))
        blocks = list(plain.blocks)
    else:
        x = plain.patch_embed(images)
        blocks = [block for layer in plain.layers for block in layer.blocks]
    for i, block in enumerate(blocks):
        if make is tiny_swin and i == 2:
            x = plain.layers[1].downsample(x)
        attend = block._attn if make is tiny_swin else lambda h, block=block: block.ls1(block.attn(h))
        x = x + restated(places.get_submodule(f"blocks.{i}.attn_branch.after"), attend(block.norm1(x)))
        mlp = block.mlp(block.norm2(x))
        mlp = block.ls2(mlp) if make is tiny_vit else mlp
        x = x + restated(places.get_submodule(f"blocks.{i}.mlp_branch.after"), mlp)
    expected = plain.forward_head(plain.norm(x), pre_logits=True)
    assert torch.allclose(tuned.features(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "method", "count"),
    [
        ("swin_base_patch4_window7_224", LoRand(), 1_203_456),
        ("swin_base_patch4_window7_224", LoRand(branches=4), 2_370_816),
        ("swin_base_patch4_window7_224", LoRand(branches=4, kernel=16), 4_754_688),
        ("swin_large_patch4_window7_224", LoRand(), 1_799_040),
        ("vit_base_patch16_224", LoRand(), 918_528),
    ],
)
def test_counts(model: str, method: LoRand, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, method, verify=False, show=False).plan().trainable == count


def test_each_factor_starts_with_the_bound_of_its_second_dimension() -> None:
    tuned = vpeft.tune(tiny_vit(embed_dim=96), LoRand(branches=8, kernel=16), show=False)
    layer = tuned.adapter().get_submodule("blocks.0.mlp_branch.after")
    down = {"A": 16, "G": 16, "B": 48, "bias": 96}
    up = {"A": 16, "G": 16, "B": 96, "bias": 48}
    for part, fans in ((layer.down, down), (layer.up, up)):
        for name, fan in fans.items():
            assert 0.9 / math.sqrt(fan) < getattr(part, name).abs().max() <= 1 / math.sqrt(fan)


def test_drop_path_comes_before_the_adapter() -> None:
    """A dropped branch still passes what the adapter makes of zero."""
    plain = tiny_vit(drop_path_rate=0.9)
    tuned = vpeft.tune(plain, LoRand(), show=False).train()
    block, outs = tuned.backbone.blocks[2], []
    block.drop_path2.drop_prob = 1.0 - 1e-6
    block.drop_path2.register_forward_hook(lambda _m, _a, out: outs.append(out))
    tuned.features(images_for(plain))
    layer = tuned.adapter().get_submodule("blocks.2.mlp_branch.after")
    assert torch.allclose(outs[0], layer(torch.zeros_like(outs[0])))


def test_a_convnext_block_has_one() -> None:
    tuned = vpeft.tune(tiny_convnext(), LoRand(), show=False)
    assert [row.place for row in tuned.plan().rows] == [f"blocks.{i}.mlp_branch" for i in range(5)]
