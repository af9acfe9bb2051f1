"""RLRR restated with plain tensors, counted and merged."""

from __future__ import annotations

import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import RLRR


def test_equals_a_restatement_and_merges() -> None:
    tuned = vpeft.tune(base_vit(), RLRR(), show=False)
    randomise(tuned)
    own, changes, plain = dict(tuned.trainable()), {}, base_vit()

    def pair(place: str):  # type: ignore[no-untyped-def]
        return lambda y, _: y * own[f"{place}.after.scale"] + own[f"{place}.after.shift"]

    def linear(W, b, place):  # type: ignore[no-untyped-def]
        left, right = own[f"{place}.reparametrize.outputs"].flatten(), own[f"{place}.reparametrize.inputs"].flatten()
        return W + torch.diag(left) @ W @ torch.diag(right), b + own[f"{place}.after.shift"]

    changes["patch"], changes["norm"] = pair("patch"), pair("norm")
    for i, block in enumerate(plain.blocks):
        for norm in ("norm1", "norm2"):
            changes[f"blocks.{i}.{norm}"] = pair(f"blocks.{i}.{norm}")
        qkv = block.attn.qkv
        parts = zip("qkv", qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True)
        made = [linear(W, b, f"blocks.{i}.attn.{letter}") for letter, W, b in parts]
        weights = {"qkv": (torch.cat([m[0] for m in made]), torch.cat([m[1] for m in made]))}
        for name, layer in (("attn.proj", block.attn.proj), ("mlp.fc1", block.mlp.fc1), ("mlp.fc2", block.mlp.fc2)):
            weights[name.split(".")[1]] = linear(layer.weight, layer.bias, f"blocks.{i}.{name}")
        for name, (W, b) in weights.items():
            changes[f"blocks.{i}.{name}"] = lambda _, x, W=W, b=b: x @ W.T + b
    x = images_for(plain)
    expected = ViTByHand(plain, changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_counts_and_starts() -> None:
    assert trained(RLRR()) == 12 * 31 * 768 + 2 * 1536 == 288_768
    own = dict(vpeft.tune(base_vit(), RLRR(), show=False).trainable())
    left, right = own["blocks.0.mlp.fc2.reparametrize.outputs"], own["blocks.0.mlp.fc2.reparametrize.inputs"]
    assert 2.0 < left.abs().max() <= 6**0.5
    assert 0.15 < right.abs().max() <= (6 / 192) ** 0.5


def test_on_swin_as_published_it_merges() -> None:
    method = RLRR(targets=("qkv", "proj", "fc1", "fc2"), patch=False, merging=True)
    tuned = vpeft.tune(tiny_swin(), method, show=False)
    keys = [key for key, _ in tuned.trainable()]
    assert any(key.startswith("stages.1.") and "reparametrize" in key for key in keys), keys
    assert not any(key.startswith("patch") for key in keys)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)
