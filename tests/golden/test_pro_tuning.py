"""Pro-tuning restated with convolutions and counted."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext, tiny_swin
from vpeft.methods import ProTuning


def prompt(own, key, x):  # type: ignore[no-untyped-def]
    """v of a map (B, D, H, W)."""
    h = F.gelu(F.conv2d(x, own[f"{key}.down.weight"][..., None, None], own[f"{key}.down.bias"]))
    conv = own[f"{key}.conv.weight"]
    h = F.gelu(F.conv2d(h, conv, own[f"{key}.conv.bias"], padding=conv.shape[-1] // 2, groups=len(conv)))
    return F.conv2d(h, own[f"{key}.up.weight"][..., None, None], own[f"{key}.up.bias"])


def test_equals_a_restatement_on_a_vit() -> None:
    tuned = vpeft.tune(base_vit(), ProTuning(count=2, ratio=6, kernel=3), show=False)
    randomise(tuned)
    own = dict(tuned.trainable())
    assert {key.split(".after")[0] for key in own} == {"blocks.0", "blocks.1"}

    def change(i):  # type: ignore[no-untyped-def]
        def after(x, _):  # type: ignore[no-untyped-def]
            cells = x[:, 1:].mT.reshape(len(x), 48, 4, 4)
            v = prompt(own, f"blocks.{i}.after", cells).flatten(2).mT
            return torch.cat([x[:, :1], x[:, 1:] + v], dim=1)

        return after

    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), {"blocks.0": change(0), "blocks.1": change(1)})(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)


def test_acts_after_each_stage() -> None:
    plain = tiny_convnext()
    tuned = vpeft.tune(copy.deepcopy(plain), ProTuning(), show=False)
    randomise(tuned)
    own = dict(tuned.trainable())
    x = images = images_for(plain)
    x = plain.stem(x)
    for i, stage in enumerate(plain.stages):
        x = stage(x)
        x = x + prompt(own, f"blocks.{(0, 1, 3, 4)[i]}.after", x)
    assert torch.allclose(tuned.features(images), plain.forward_head(plain.norm_pre(x), pre_logits=True), atol=1e-4)
    keys = [key for key, _ in vpeft.tune(tiny_swin(), ProTuning(), show=False).trainable()]
    assert {key.split(".after")[0] for key in keys} == {"blocks.1", "blocks.3"}


def test_counts_and_starts() -> None:
    assert trained(ProTuning()) == 4 * (2 * 768 * 96 + 25 * 96 + 2 * 96 + 768)
    tuned = vpeft.tune(base_vit(), ProTuning(), show=False)
    assert tuned.verify().identity and not tuned.plan().mergeable
