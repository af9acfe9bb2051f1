"""SSF against its authors' numbers, counts, the sites of each family, and merging."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_swin
from vpeft.methods import SSF

OURS_TO_THEIRS = {"norm1": ("", 1), "norm2": ("", 2), "attn.qkv": ("attn.", 1), "attn.proj": ("attn.", 2)}
OURS_TO_THEIRS |= {"mlp.fc1": ("mlp.", 1), "mlp.fc2": ("mlp.", 2)}


def test_equals_the_authors_code() -> None:
    pairs = {"patch": ("patch_embed.", 1), "norm": ("", 1)}
    for block in range(3):
        for ours, (theirs, number) in OURS_TO_THEIRS.items():
            pairs[f"blocks.{block}.{ours}"] = (f"blocks.{block}.{theirs}", number)
    mapping = {
        f"{ours}.after.{kind}": lambda t, key=f"{theirs}ssf_{kind}_{number}": t[key]
        for ours, (theirs, number) in pairs.items()
        for kind in ("scale", "shift")
    }
    tuned = reproduce("ssf", "vit", SSF(), mapping)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5)


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), SSF(), show=False)
    randomise(tuned)
    values, changes = dict(tuned.trainable()), {}
    places = ["patch", "norm"] + [f"blocks.{block}.{inner}" for block in range(3) for inner in OURS_TO_THEIRS]
    for place in places:
        scale, shift = values[f"{place}.after.scale"], values[f"{place}.after.shift"]
        short = place.replace("attn.", "").replace("mlp.", "")
        changes[short] = lambda out, _, scale=scale, shift=shift: out * scale + shift
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


def test_counts() -> None:
    assert trained(SSF()) == 205_824
    assert abs(trained(SSF(), head=235) - 386_200) < 500  # the printed 0.39 M of FGVC is with the mean head


def test_starts_near_one_and_zero_as_published() -> None:
    tuned = vpeft.tune(base_vit(), SSF(), show=False)
    scales = torch.cat([p.detach() for name, p in tuned.trainable() if name.endswith("scale")])
    shifts = torch.cat([p.detach() for name, p in tuned.trainable() if name.endswith("shift")])
    for values, mean in ((scales, 1.0), (shifts, 0.0)):
        assert abs(float(values.mean()) - mean) < 2e-3
        assert 0.018 < float(values.std()) < 0.022


SITES_OF_A_SWIN_BLOCK = {"norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
SITES_OF_A_CONVNEXT_BLOCK = {"conv", "norm2", "mlp.fc1", "mlp.fc2"}


@pytest.mark.parametrize("patch_merging", [False, True])
@pytest.mark.parametrize("make", [tiny_swin, tiny_convnext])
def test_sites_of_other_families(make, patch_merging: bool) -> None:  # type: ignore[no-untyped-def]
    tuned = vpeft.tune(make(), SSF(patch_merging=patch_merging), show=False)
    sites = {name.split(".after")[0] for name, _ in tuned.trainable()}
    swin = make is tiny_swin
    expected = {"patch", "patch_norm", "norm"}
    inner = SITES_OF_A_SWIN_BLOCK if swin else SITES_OF_A_CONVNEXT_BLOCK
    expected |= {f"blocks.{block}.{site}" for block in range(len(tuned.description.blocks)) for site in inner}
    if patch_merging and swin:
        expected.add("stages.1.downsample.norm")
    if patch_merging and not swin:
        expected |= {f"stages.{n}.downsample.{part}" for n in (1, 2, 3) for part in ("norm", "reduction")}
    assert sites == expected
    randomise(tuned, 0.05)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5, rtol=1e-5)


def test_it_acts_inside_layer_scale_and_before_the_gelu() -> None:
    tuned = vpeft.tune(tiny_convnext(), SSF(), show=False)
    randomise(tuned)
    block, values = tuned.backbone.stages[0].blocks[0], dict(tuned.trainable())
    x = torch.randn(2, 16, 16, 16)

    def affine(site: str, h: torch.Tensor) -> torch.Tensor:
        return h * values[f"blocks.0.{site}.after.scale"] + values[f"blocks.0.{site}.after.shift"]

    dw = block.conv_dw
    h = torch.nn.functional.conv2d(x, dw.weight, dw.bias, padding=3, groups=16).permute(0, 2, 3, 1)
    h = affine("conv", h)
    h = affine("norm2", torch.nn.functional.layer_norm(h, (16,), block.norm.weight, block.norm.bias, block.norm.eps))
    h = torch.nn.functional.gelu(affine("mlp.fc1", h @ block.mlp.fc1.weight.T + block.mlp.fc1.bias))
    h = affine("mlp.fc2", h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias) * block.gamma
    assert torch.allclose(block(x), x + h.permute(0, 3, 1, 2), atol=1e-4)
