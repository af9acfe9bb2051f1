"""KronA restated with torch.kron, counted and merged."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import KronA


def test_equals_a_restatement_and_merges() -> None:
    tuned = vpeft.tune(base_vit(), KronA(scale=2.0, targets=("q", "v", "fc1"), rows=4, columns=8), show=False)
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}

    def delta(key: str) -> torch.Tensor:
        A, B = own[f"{key}.parallel.A"], own[f"{key}.parallel.B"]
        assert A.shape == (4, 8)
        return 2.0 * torch.stack([torch.cat([a * B for a in row], dim=1) for row in A]).flatten(0, 1)

    for i in range(3):
        whole = torch.cat([delta(f"blocks.{i}.attn.q"), torch.zeros(48, 48), delta(f"blocks.{i}.attn.v")])
        changes[f"blocks.{i}.qkv"] = lambda y, x, whole=whole: y + x @ whole.T
        first = delta(f"blocks.{i}.mlp.fc1")
        changes[f"blocks.{i}.fc1"] = lambda y, x, first=first: y + x @ first.T
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


@pytest.mark.parametrize("form", ["mlp", "mlp_residual"])
def test_beside_the_mlp_equals_a_restatement(form: str) -> None:
    tuned = vpeft.tune(base_vit(), KronA(form=form), show=False)
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    for i in range(3):
        key = f"blocks.{i}.mlp.parallel" + (".product" if form == "mlp_residual" else "")
        whole = torch.kron(own[f"{key}.A"], own[f"{key}.B"])
        if form == "mlp_residual":
            whole = whole + own[f"blocks.{i}.mlp.parallel.gain"] * torch.eye(48)
        changes[f"blocks.{i}.mlp"] = lambda y, x, whole=whole: y + x @ whole.T
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)
    assert not tuned.plan().mergeable


def test_counts_and_starts() -> None:
    assert trained(KronA()) == 24 * (24 * 24 + 32 * 32) == 38_400
    assert trained(KronA(rows=16, columns=16)) == 61_440
    for form in ("projection", "mlp", "mlp_residual"):
        assert vpeft.tune(base_vit(), KronA(form=form), show=False).verify().identity
    with pytest.raises(vpeft.MissingPlace, match="5 rows and 6 columns"):
        vpeft.tune(base_vit(), KronA(rows=5), show=False)
