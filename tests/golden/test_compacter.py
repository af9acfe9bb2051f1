"""Compacter against its authors' numbers, restated with dense Kronecker products, and counted."""

from __future__ import annotations

import math

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce, vectors
from tests.models import images_for
from vpeft.methods import Compacter


def test_equals_the_authors_code() -> None:
    names = {key.removeprefix("param/") for key in vectors("compacter") if key.startswith("param/")}
    rule = next(name for name in names if name.endswith("phm_rule"))
    mapping = {"blocks.0.attn.after.down.rule.A": lambda t: t[rule]}
    for block in range(3):
        for site in ("attn", "mlp"):
            for ours, theirs in (("down", "down_sampler"), ("up", "up_sampler")):
                for letter, name in (("s", "W_left"), ("t", "W_right"), ("b", "b")):
                    key = f"blocks.{block}.ada_{site}.adapters.t.{theirs}.{name}"
                    mapping[f"blocks.{block}.{site}.after.{ours}.{letter}"] = lambda t, key=key: t[key]
    for place in [f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)] + ["norm"]:
        for part in ("weight", "bias"):
            mapping[f"{place}.unfreeze.{part}"] = lambda t, key=f"{place}.{part}": t[key]
    reproduce("compacter", "vit", Compacter(n=4, bottleneck=8), mapping)


@pytest.mark.parametrize("rank", [1, 2])
def test_equals_a_restatement(rank: int) -> None:
    tuned = vpeft.tune(base_vit(), Compacter(n=2, bottleneck=6, rank=rank, norms=False), show=False)
    randomise(tuned, 0.5)
    own, changes = dict(tuned.trainable()), {}
    A = own["blocks.0.attn.after.down.rule.A"]

    def mapped(x: torch.Tensor, key: str) -> torch.Tensor:
        s, t = own[f"{key}.s"], own[f"{key}.t"]
        return x @ sum(torch.kron(A[j], s[j] @ t[j]) for j in range(2)) + own[f"{key}.b"]

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    for block in range(3):
        for site in ("attn", "mlp"):
            key = f"blocks.{block}.{site}.after"
            changes[f"blocks.{block}.{site}"] = lambda h, _, k=key: h + mapped(gelu(mapped(h, f"{k}.down")), f"{k}.up")
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


def test_counts_and_starts() -> None:
    each = 2 * (768 + 24) + 24 + 768
    assert trained(Compacter(norms=False)) == 24 * each + 64 == 57_088
    assert trained(Compacter(sites=("mlp",), norms=False)) == 28_576
    assert trained(Compacter()) == 57_088 + 38_400
    x, plain = images_for(base_vit()), base_vit()
    tuned = vpeft.tune(base_vit(), Compacter(), show=False).eval()
    assert torch.allclose(tuned.features(x), plain(x), atol=1e-3)
    assert not tuned.plan().mergeable


def test_n_must_divide() -> None:
    with pytest.raises(vpeft.VpeftError, match="must divide its bottleneck, 10"):
        vpeft.tune(base_vit(), Compacter(bottleneck=10), show=False)
    with pytest.raises(vpeft.MissingPlace, match="48 channels, which n = 5"):
        vpeft.tune(base_vit(), Compacter(bottleneck=10, n=5), show=False)
