"""DiffFit: which tensors train, where gamma multiplies, the published count, and merging."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import DiffFit


def test_counts() -> None:
    biases, norm_weights, gammas = 102_912, 25 * 768, 2 * 12 * 768
    assert trained(DiffFit()) == biases + norm_weights + gammas == 140_544  # stored with the re-run's results
    assert trained(DiffFit(), model="vit_base_patch16_clip_224") == 141_312  # the norm before the blocks


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin, tiny_convnext])
def test_biases_and_norms_train_and_no_other_weight(make) -> None:  # type: ignore[no-untyped-def]
    tuned, plain = vpeft.tune(make(), DiffFit(), show=False), make()
    norms = {
        f"{name}.{kind}"
        for name, m in plain.named_modules()
        if isinstance(m, nn.LayerNorm)
        for kind in ("weight", "bias")
    }
    biases = {name for name, _ in plain.named_parameters() if name.split(".")[-1] == "bias"}
    live = {name for name, p in tuned.backbone.named_parameters() if p.requires_grad}
    assert live == norms | biases
    branches = {name for name, _ in tuned.trainable() if name.endswith("_branch.after.scale")}
    assert len(branches) == len(tuned.description.blocks) * (1 if make is tiny_convnext else 2)


def test_equals_a_restatement_and_folds() -> None:
    tuned, plain, changes = vpeft.tune(base_vit(), DiffFit(), show=False), base_vit(), {}
    randomise(tuned)
    for name, parameter in tuned.trainable():
        if name.endswith(".after.scale"):
            changes[name.removesuffix(".after.scale")] = lambda out, _, gamma=parameter: out * gamma
        else:
            key = name.replace(".unfreeze", "").replace("patch.", "patch_embed.proj.")
            plain.get_parameter(key).data.copy_(parameter.data)
    assert len(changes) == 6
    x = images_for(plain)
    expected = ViTByHand(plain, changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-5)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-5)


def test_gamma_multiplies_behind_layer_scale_and_drop_path() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2, num_classes=0, init_values=0.5
    )
    model.blocks[0].drop_path1 = timm.layers.DropPath(0.5)
    tuned = vpeft.tune(model, DiffFit(), show=False)
    gamma = dict(tuned.trainable())["blocks.0.attn_branch.after.scale"]
    with torch.no_grad():
        gamma.copy_(torch.linspace(-2, 2, 24))
    block, seen = model.blocks[0], {}
    block.norm1.register_forward_pre_hook(lambda module, args: seen.__setitem__("before", args[0].detach()))
    block.ls1.register_forward_hook(lambda module, args, out: seen.__setitem__("scaled", out.detach()))
    block.norm2.register_forward_pre_hook(lambda module, args: seen.__setitem__("after", args[0].detach()))
    tuned.train()
    tuned.features(torch.randn(16, 3, 32, 32))
    branch = seen["after"] - seen["before"]
    dropped = (branch.flatten(1) == 0).all(1)
    assert 0 < dropped.sum() < 16
    kept = 2 * gamma.detach() * seen["scaled"]  # those kept are raised by one over the rate
    assert torch.allclose(branch[~dropped], kept[~dropped], atol=1e-6)
