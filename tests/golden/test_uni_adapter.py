"""UniAdapter's image form restated and counted."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import UniAdapter


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), UniAdapter(bottleneck=6, scale=0.3), show=False)
    randomise(tuned)
    own, plain, changes = dict(tuned.trainable()), base_vit(), {}
    for i in range(3):
        t = {
            n: own[f"blocks.{i}.mlp_branch.parallel.{n}"]
            for n in ("norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias")
        }

        def change(y, x, t=t):  # type: ignore[no-untyped-def]
            inner = F.layer_norm(x, (48,), t["norm.weight"], t["norm.bias"], 1e-5)
            return y + 0.3 * (F.relu(inner @ t["down.weight"].T + t["down.bias"]) @ t["up.weight"].T + t["up.bias"])

        changes[f"blocks.{i}.mlp_branch"] = change
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3), name


def test_counts_and_starts() -> None:
    # the card counts three up projections and a second norm for three modes; the image has one of each
    whole = 768 * 512 + 512 + 3 * (512 * 768 + 768) + 4 * 768
    assert whole == 1_578_752
    assert trained(UniAdapter(bottleneck=512)) == 12 * (whole - 2 * (512 * 768 + 768) - 2 * 768)
    up = vpeft.tune(base_vit(), UniAdapter(), show=False).adapter().get_submodule("blocks.0.mlp_branch.parallel.up")
    assert 0.01 < float(up.weight.detach().std()) < 0.03
    assert vpeft.tune(base_vit(), UniAdapter(start="identity"), show=False).verify().identity
