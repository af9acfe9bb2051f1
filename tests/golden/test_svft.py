"""SVFT restated with a singular value decomposition of its own, counted, merged and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import SVFT


@pytest.mark.parametrize("start", ["zero", "released"])
@pytest.mark.parametrize("pattern", ["plain", "banded"])
def test_equals_a_restatement_and_merges(pattern: str, start: str, tmp_path: Path) -> None:
    tuned = vpeft.tune(base_vit(), SVFT(pattern=pattern, start=start), num_classes=2, show=False)
    randomise(tuned)
    own, changes, plain = dict(tuned.trainable()), {}, base_vit()

    def change(W: torch.Tensor, key: str) -> torch.Tensor:
        U, S, V = (part.float() for part in torch.linalg.svd(W.double(), full_matrices=False))
        V = V.T
        for column in range(len(S)):
            if U[U[:, column].abs().argmax(), column] < 0:
                U[:, column], V[:, column] = -U[:, column], -V[:, column]
        M, values = torch.zeros(len(S), len(S)), own[f"{key}.reparametrize.values"].tolist()
        for row in range(len(S)):
            for column in range(len(S)):
                if abs(row - column) <= (2 if pattern == "banded" else 0):
                    M[row, column] = values.pop(0)
        assert not values
        if start == "released":
            M = M / (1 + torch.exp(-own[f"{key}.reparametrize.gate"]))
        return U @ (torch.diag(S) + M) @ V.T

    for i, block in enumerate(plain.blocks):
        parts = zip("qkv", block.attn.qkv.weight.chunk(3), strict=True)
        weights = {"qkv": (torch.cat([change(W, f"blocks.{i}.attn.{x}") for x, W in parts]), block.attn.qkv.bias)}
        for name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            layer = block.get_submodule(name)
            weights[name.split(".")[1]] = change(layer.weight, f"blocks.{i}.{name}"), layer.bias
        for name, (W, b) in weights.items():
            changes[f"blocks.{i}.{name}"] = lambda _, x, W=W, b=b: x @ W.T + b
    x = images_for(plain)
    expected = ViTByHand(plain, changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=2e-4)
    path = tuned.save(tmp_path / "a.safetensors", labels=["a", "b"])
    assert torch.equal(vpeft.load(base_vit(), path).features(x), tuned.features(x))
    assert torch.allclose(tuned.merge().features(x), expected, atol=2e-4)


def test_counts_and_starts() -> None:
    assert trained(SVFT()) == 72 * 768 == 55_296
    assert trained(SVFT(targets=("qkv", "proj", "fc1", "fc2"))) == 48 * 768
    assert trained(SVFT(pattern="banded")) == 72 * (5 * 768 - 6) == 276_048
    assert trained(SVFT(pattern="random", entries=100)) == 7_200
    assert trained(SVFT(start="released")) == 55_296 + 72
    for pattern in ("plain", "banded", "random"):
        assert vpeft.tune(base_vit(), SVFT(pattern=pattern), show=False).verify().identity


def test_random_places_are_those_of_the_seed() -> None:
    one, two, other = (
        vpeft.tune(base_vit(), SVFT(pattern="random", entries=50, seed=seed), show=False).adapter()
        for seed in (1, 1, 2)
    )
    where = "blocks.2.mlp.fc2.reparametrize.where"
    assert torch.equal(one.get_buffer(where), two.get_buffer(where))
    assert not torch.equal(one.get_buffer(where), other.get_buffer(where))
    assert len(set(map(tuple, one.get_buffer(where).T.tolist()))) == 50
