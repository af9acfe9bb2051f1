"""EFFT restated, counted and merged."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_swin
from vpeft.methods import EFFT


@pytest.mark.parametrize("core", ["shared", "per_layer"])
def test_equals_a_restatement_and_merges(core: str) -> None:
    tuned = vpeft.tune(base_vit(), EFFT(rank=3, scale=2.0, core=core), show=False).eval()
    randomise(tuned, 0.3)
    own, changes = dict(tuned.trainable()), {}

    def factor(bank: str, name: str) -> torch.Tensor:
        return own[f"blocks.0.{bank}.reparametrize.bank.{name}"]

    def delta(i: int, place: str) -> torch.Tensor:
        block = 0 if core == "shared" else i
        bank = "attn.q" if place.startswith("attn") else "mlp.fc1"
        return factor(bank, "U") @ own[f"blocks.{block}.{place}.reparametrize.core.C"] @ factor(bank, "V")

    for i in range(3):
        qkv = torch.cat([delta(i, f"attn.{letter}") for letter in "qkv"], dim=1)
        second = delta(i, "mlp.fc2").T
        for name, change in (
            ("qkv", qkv),
            ("proj", delta(i, "attn.proj")),
            ("fc1", delta(i, "mlp.fc1")),
            ("fc2", second),
        ):
            changes[f"blocks.{i}.{name}"] = lambda y, x, change=change: y + 2.0 * x @ change
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


@pytest.mark.parametrize("zero", ["vv", "vu", "uv", "uu"])
def test_starts_as_the_frozen_model(zero: str) -> None:
    tuned = vpeft.tune(base_vit(), EFFT(rank=4, zero=zero), show=False)
    assert tuned.verify().identity
    own = dict(tuned.trainable())
    for place, letter in (("attn.q", zero[0]), ("mlp.fc1", zero[1])):
        for name in "UV":
            assert bool(own[f"blocks.0.{place}.reparametrize.bank.{name}"].any()) is (name.lower() != letter)


def test_counts() -> None:
    assert trained(EFFT(rank=16, core="shared")) == 5_376 * 16 + 6 * 256 == 87_552
    assert trained(EFFT(rank=32, core="shared")) == 178_176
    assert trained(EFFT(rank=32)) == 245_760


def test_banks_belong_to_a_width() -> None:
    keys = [key for key, _ in vpeft.tune(tiny_swin(), EFFT(rank=4), show=False).trainable()]
    assert sum(key.endswith("bank.U") for key in keys) == 4
