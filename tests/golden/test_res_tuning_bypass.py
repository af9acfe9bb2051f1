"""Res-Tuning-Bypass restated and counted; no gradient in the backbone."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import ResTuningBypass


@pytest.mark.parametrize("blend", ["learnt", "sum"])
def test_equals_a_restatement(blend: Literal["learnt", "sum"]) -> None:
    tuned = vpeft.tune(base_vit(), ResTuningBypass(bottleneck=5, blend=blend), show=False).eval()
    randomise(tuned, 0.2)
    own, plain = dict(tuned.trainable()), base_vit()
    base = next(iter(own)).split(".before.")[0] + ".before"
    images, outputs, patches = images_for(plain), [], []
    changes = {f"blocks.{i}": lambda x, _: outputs.append(x) or x for i in range(3)}
    ViTByHand(plain, {**changes, "patch": lambda x, _: patches.append(x) or x})(images)

    def tuner(x, key):  # type: ignore[no-untyped-def]
        w, a, v, c = (own[f"{base}.{key}.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias"))
        return x + F.gelu(x @ w.T + a) @ v.T + c

    b = torch.cat([plain.cls_token.expand(2, -1, -1), patches[0]], dim=1) + plain.pos_embed
    for i, x in enumerate(outputs):
        share = own[f"{base}.blend"][i].sigmoid() if blend == "learnt" else None
        across, along = tuner(x, f"across.{i}"), tuner(b, f"along.{i}")
        b = across + along if share is None else share * across + (1 - share) * along
    expected = plain.norm(b)[:, 0]
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-5)
    for name, a, c in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, c, atol=1e-4 * float(c.abs().max() + 1e-6), rtol=1e-3), name
    assert tuned.plan().reach == "none"


def test_counts() -> None:
    assert trained(ResTuningBypass()) == 12 * 2 * (2 * 768 * 10 + 10 + 768) + 12 == 387_324
    assert trained(ResTuningBypass(bottleneck=32, blend="sum")) == 12 * 99_904
    tuned = vpeft.tune(tiny_swin(), ResTuningBypass(), show=False)
    layer = next(edit.layer for edit in tuned.adapter().edits)
    assert len(layer.across) == 2  # the last stage
