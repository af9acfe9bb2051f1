"""KAdaptation restated with torch.kron, counted and merged."""

from __future__ import annotations

import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import KAdaptation


def test_equals_a_restatement_and_merges() -> None:
    tuned = vpeft.tune(base_vit(), KAdaptation(terms=4, scale=1.5), show=False).eval()
    randomise(tuned, 0.3)
    own, changes = dict(tuned.trainable()), {}
    for i in range(3):
        deltas = []
        for letter in "qv":
            bank, key = f"blocks.0.attn.{letter}.parallel.bank", f"blocks.{i}.attn.{letter}.parallel"
            left, right, u, v = own[f"{bank}.left"], own[f"{bank}.right"], own[f"{key}.u"], own[f"{key}.v"]
            terms = (torch.kron(torch.outer(left[j], right[j]), torch.outer(u[j], v[j])) for j in range(4))
            deltas.append(1.5 * sum(terms))
        b = own[f"blocks.{i}.attn.q.parallel.shift.b"]
        weight = torch.cat([deltas[0], torch.zeros(48, 48), deltas[1]])
        bias = torch.cat([b, torch.zeros(48), b])
        changes[f"blocks.{i}.qkv"] = lambda y, x, weight=weight, bias=bias: y + x @ weight.T + bias
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_counts_and_starts() -> None:
    assert trained(KAdaptation()) == 36_864 + 9_216 + 4_096 == 50_176
    tuned = vpeft.tune(base_vit(), KAdaptation(terms=4), show=False)
    assert tuned.verify().identity
    own = dict(tuned.trainable())
    assert 0 < own["blocks.0.attn.q.parallel.u"].abs().max() <= 0.01
    assert not own["blocks.0.attn.q.parallel.v"].any()
