"""Binary adapters restated with signs, counted and merged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import BiAdapter
from vpeft.methods.bi_adapter import levels, quantised


def one_bit(w: Tensor) -> Tensor:
    deviation = ((w - w.mean()).square().sum() / (w.numel() - 1)).sqrt()
    return torch.sign(w - w.mean()) * 0.6744897501960817 * deviation + w.mean()


def test_equals_a_restatement() -> None:
    x = images_for(base_vit())
    tuned = vpeft.tune(base_vit(), BiAdapter(bottleneck=6, scale=0.7), show=False).eval()
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    for i in range(3):
        d, u = (one_bit(own[f"blocks.{i}.mlp_branch.parallel.{name}"]) for name in ("down", "up"))
        changes[f"blocks.{i}.mlp_branch"] = lambda h, x, d=d, u=u: h + 0.7 * torch.relu(x @ d.T) @ u.T
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)

    tuned = vpeft.tune(base_vit(), BiAdapter(form="lora", bottleneck=6, scale=0.7), show=False).eval()
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    for i in range(3):
        deltas = []
        for letter in "qv":
            a, b = (one_bit(own[f"blocks.{i}.attn.{letter}.parallel.{name}"]) for name in ("down", "up"))
            deltas.append(0.7 * b @ a)
        whole = torch.cat([deltas[0], torch.zeros(48, 48), deltas[1]])
        changes[f"blocks.{i}.qkv"] = lambda y, x, whole=whole: y + x @ whole.T
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_levels_and_the_straight_gradient(bits: int) -> None:
    table = torch.tensor(levels(bits), dtype=torch.float64)
    assert torch.allclose(table, -table.flip(0)) and len(table) == 2**bits
    normal = torch.distributions.Normal(0.0, 1.0)
    edges = torch.cat([torch.zeros(1), normal.cdf((table[1:] + table[:-1]) / 2), torch.ones(1)])
    assert torch.allclose(normal.cdf(table), (edges[1:] + edges[:-1]) / 2, atol=1e-7)
    w = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(5, 7, dtype=torch.float64)
    (found,) = torch.autograd.grad((quantised(w, levels(bits)) * direction).sum(), w)
    # by hand: e = v + c with c constant, Q = e sigma + m
    m, sigma = w.mean(), w.std()
    nearest = table[(((w - m) / (sigma + 1e-5))[..., None] - table).abs().argmin(-1)]
    c = (nearest - (w - m) / (sigma + 1e-5)).detach()
    (expected,) = torch.autograd.grad(
        ((((w - m) / (sigma + 1e-5)) + c) * sigma * direction).sum() + (m * direction).sum(), w
    )
    assert torch.allclose(found, expected)
    assert torch.allclose(quantised(w, levels(bits)), nearest * sigma + m)


def test_counts_and_starts() -> None:
    assert trained(BiAdapter()) == 2 * 32 * 768 * 12 == 589_824
    assert trained(BiAdapter(form="lora")) == 2 * 589_824
    assert vpeft.tune(base_vit(), BiAdapter(bits=32), show=False).verify().identity
    assert not vpeft.tune(base_vit(), BiAdapter(), show=False).plan().mergeable
