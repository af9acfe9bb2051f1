"""SNELL restated entry by entry, counted and merged."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import SNELL


@pytest.mark.parametrize(("sparsity", "threshold"), [(0.9, "released"), (0.5, "paper"), (0.0, "released")])
def test_equals_a_restatement_and_merges(sparsity: float, threshold: str) -> None:
    tuned = vpeft.tune(base_vit(), SNELL(rank=6, sparsity=sparsity, threshold=threshold), show=False)
    randomise(tuned, 1.0)
    own, changes = dict(tuned.trainable()), {}

    def delta(key: str) -> torch.Tensor:
        P, Q = own[f"{key}.reparametrize.outputs"], own[f"{key}.reparametrize.inputs"]
        terms = [(P[h][:, None] - Q[h][None]).square().sum(-1).sqrt() for h in (0, 1)]
        D = 0.1 * terms[0] - 0.1 * terms[1]
        if sparsity == 0:
            return D
        ordered = D.abs().flatten().sort().values
        at = sparsity * (len(ordered) - 1)
        limit = ordered[int(at)] + (at - int(at)) * (ordered[int(at) + 1] - ordered[int(at)])
        kept = torch.where(D.abs() > limit, D, 0.0)
        assert abs((kept == 0).float().mean() - sparsity) < 0.01
        return kept * D.abs() if threshold == "released" else kept * (D.abs() - limit)

    for i in range(3):
        whole = torch.cat([delta(f"blocks.{i}.attn.{letter}") for letter in "qkv"])
        for name, change in (("qkv", whole), *((n.split(".")[1], delta(f"blocks.{i}.{n}")) for n in NAMES)):
            changes[f"blocks.{i}.{name}"] = lambda y, x, change=change: y + x @ change.T
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


NAMES = ("attn.proj", "mlp.fc1", "mlp.fc2")


def test_gradient_of_the_released_threshold_leaves_the_size_out() -> None:
    tuned = vpeft.tune(base_vit(), SNELL(rank=4, sparsity=0.5), show=False)
    layer = tuned.adapter().get_submodule("blocks.0.mlp.fc1.reparametrize")
    direction = torch.randn(192, 48)
    (found,) = torch.autograd.grad((layer.delta() * direction).sum(), layer.inputs)
    dense = sum(
        c * (p[:, None] - q[None]).square().sum(-1).sqrt()
        for c, p, q in zip((0.1, -0.1), layer.outputs, layer.inputs, strict=True)
    )
    size = dense.detach().abs()
    fixed = size * (size > size.quantile(0.5)) * direction
    (expected,) = torch.autograd.grad((dense * fixed).sum(), layer.inputs)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rank", [8, 16, 32])
def test_counts(rank: int) -> None:
    assert trained(SNELL(rank=rank)) == 12 * 13_824 * rank


def test_starts_close_to_the_frozen_model() -> None:
    tuned = vpeft.tune(base_vit(), SNELL(), show=False).eval()
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), base_vit()(x), atol=0.1)
    own = dict(tuned.trainable())
    bound = (1 / (4 * 192)) ** 0.5
    assert 0.9 * bound < own["blocks.0.mlp.fc2.reparametrize.inputs"].abs().max() <= bound
