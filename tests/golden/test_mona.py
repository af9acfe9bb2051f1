"""Mona against the authors' numbers on Swin, and a restatement on ViT."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vpeft
from tests.golden.parity import reproduce
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.methods import Mona

NAMES = {
    "normed_gain": "gamma",
    "gain": "gammax",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "down.weight": "project1.weight",
    "down.bias": "project1.bias",
    "up.weight": "project2.weight",
    "up.bias": "project2.bias",
    "pointwise.weight": "adapter_conv.projector.weight",
    "pointwise.bias": "adapter_conv.projector.bias",
    **{f"depthwise.{i}.{kind}": f"adapter_conv.conv{i + 1}.{kind}" for i in range(3) for kind in ("weight", "bias")},
}


def test_equals_the_authors_code() -> None:
    mapping = {}
    for index in range(4):
        for module in (1, 2):
            theirs = f"layers.{index // 2}.blocks.{index % 2}.my_module_{module}"
            for mine, name in NAMES.items():
                mapping[f"blocks.{index}.stream{module}.after.{mine}"] = lambda t, n=f"{theirs}.{name}": t[n]
    reproduce("mona", "swin", Mona(), mapping)


def restated(layer: nn.Module, x: Tensor, outside: str) -> Tensor:
    """One adapter on (B, 1 + 16, D), its convolutions as sums over shifted maps."""
    u = F.layer_norm(x, x.shape[-1:], layer.norm.weight, layer.norm.bias) * layer.normed_gain + x * layer.gain
    z = u @ layer.down.weight.T + layer.down.bias
    grid = z[:, 1:].reshape(len(x), 4, 4, -1)
    total = torch.zeros_like(grid)
    for conv in layer.depthwise:
        reach = conv.weight.shape[-1] // 2
        padded = F.pad(grid, (0, 0, reach, reach, reach, reach))
        for i in range(2 * reach + 1):
            for j in range(2 * reach + 1):
                total = total + padded[:, i : i + 4, j : j + 4] * conv.weight[:, 0, i, j]
        total = total + conv.bias
    grid = grid + total / 3
    grid = grid + grid @ layer.pointwise.weight[:, :, 0, 0].T + layer.pointwise.bias
    z = torch.cat([z[:, :1], grid.reshape(len(x), 16, -1)], dim=1)
    out = F.gelu(z) @ layer.up.weight.T + layer.up.bias
    if outside == "skip":
        out = torch.cat([torch.zeros_like(out[:, :1]), out[:, 1:]], dim=1)
    return x + out


@pytest.mark.parametrize("outside", ["bottleneck", "skip"])
def test_equals_a_restatement_on_vit(outside: str) -> None:
    plain = tiny_vit()
    tuned = vpeft.tune(copy.deepcopy(plain), Mona(bottleneck=6, outside=outside), show=False).eval()
    for _, parameter in tuned.trainable():
        torch.nn.init.normal_(parameter, std=0.3)
    images = images_for(plain)
    x = plain._pos_embed(plain.patch_embed(images))
    for i, block in enumerate(plain.blocks):
        x = x + block.attn(block.norm1(x))
        x = restated(tuned.adapter().get_submodule(f"blocks.{i}.stream1.after"), x, outside)
        x = x + block.mlp(block.norm2(x))
        x = restated(tuned.adapter().get_submodule(f"blocks.{i}.stream2.after"), x, outside)
    assert torch.allclose(tuned.features(images), plain.norm(x)[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("swin_tiny_patch4_window7_224", 1_408_128),
        ("swin_base_patch4_window7_224", 3_667_456),
        ("swin_large_patch4_window7_224", 5_267_712),
        ("vit_base_patch16_224", 2_684_928),
    ],
)
def test_counts(model: str, count: int) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(model, num_classes=0)
    assert vpeft.tune(backbone, Mona(), verify=False, show=False).plan().trainable == count


def test_starts_as_the_code_does() -> None:
    tuned = vpeft.tune(tiny_vit(embed_dim=384, num_heads=6), Mona(), show=False)
    layer = tuned.adapter().get_submodule("blocks.0.stream1.after")
    assert layer.normed_gain.unique().tolist() == pytest.approx([1e-6])
    assert layer.gain.unique().tolist() == [1.0]
    for linear in (layer.down, layer.up):
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        assert not linear.bias.any()


def test_a_convnext_block_has_one() -> None:
    tuned = vpeft.tune(tiny_convnext(), Mona(), show=False)
    assert [row.place for row in tuned.plan().rows] == [f"blocks.{i}.stream2" for i in range(5)]


def test_inserted_prompts_stay_off_the_grid() -> None:
    from vpeft.methods import VPTDeep

    plain = tiny_vit()
    tuned = vpeft.tune(plain, VPTDeep(tokens=3), Mona(outside="skip"), show=False).eval()
    seen: list[Tensor] = []
    layer = tuned.adapter().get_submodule("blocks.1.stream1.after")
    layer.register_forward_hook(lambda _m, args, out: seen.append((args[0] - out).abs().amax(dim=(0, 2))))
    tuned.features(images_for(plain))
    assert seen[0].shape == (20,)
    assert not seen[0][:4].any()
    assert seen[0][4:].all()
