"""MoSA against copies with masked gradients, restated and counted."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import MoSA
from vpeft.methods.mosa import SplitBottleneck


@pytest.mark.parametrize(("merge", "share"), [("add", 0.25), ("joint", 1.0)])
def test_equals_a_restatement(merge: str, share: float) -> None:
    tuned = vpeft.tune(base_vit(), MoSA(bottleneck=5, merge=merge), show=False).eval()
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    names = ("norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias")
    for i in range(3):
        parts = [own[f"blocks.{i}.mlp_branch.parallel.{name}"] for name in names]

        def change(y, x, parts=parts):  # type: ignore[no-untyped-def]
            n, m, d, e, u, v = parts
            inner = F.gelu(F.layer_norm(x, (48,), n, m) @ d.T + e)
            return y + 0.1 * (inner @ (share * u).T + v)

        changes[f"blocks.{i}.mlp_branch"] = change
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


def test_trains_as_copies_with_masked_gradients() -> None:
    torch.manual_seed(0)
    layer = SplitBottleneck(12, 8, 4, 0.25, 1.0, 0.0)
    counts = torch.bincount(layer.owner.flatten().long())
    assert counts.tolist() == [24, 24, 24, 24]
    copies = [layer.up.weight.detach().clone().requires_grad_() for _ in range(4)]
    optimiser, theirs = torch.optim.SGD([layer.up.weight], 0.1), torch.optim.SGD(copies, 0.1)
    seen = set()
    for step in range(24):
        x, direction = torch.randn(3, 12), torch.randn(3, 12)
        optimiser.zero_grad()
        torch.manual_seed(step)
        (layer(x) * direction).sum().backward()
        torch.manual_seed(step)
        drawn = int(torch.randint(4, ()))
        seen.add(drawn)
        theirs.zero_grad()
        inner = F.gelu(layer.down(layer.norm(x))).detach()
        ((inner @ copies[drawn].T) * direction).sum().backward()
        assert copies[drawn].grad is not None
        copies[drawn].grad *= layer.owner == drawn
        optimiser.step()
        theirs.step()
    assert seen == {0, 1, 2, 3}
    x = torch.randn(3, 12)
    merged = sum(copies) / 4
    expected = F.gelu(layer.down(layer.norm(x))) @ merged.T + layer.up.bias
    assert torch.allclose(layer.eval()(x), expected, atol=1e-6)


def test_counts_and_starts() -> None:
    assert trained(MoSA()) == 12 * (99_136 + 1_536) == 1_208_064
    assert vpeft.tune(base_vit(), MoSA(), show=False).verify().identity
