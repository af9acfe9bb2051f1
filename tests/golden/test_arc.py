"""ARC against its authors' numbers, restated, counted and merged."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_swin
from vpeft.methods import ARC


def test_equals_the_authors_code() -> None:
    mapping = {}
    for norm, site in (("norm1", "att"), ("norm2", "mlp")):
        P = f"transformer.{site}_down_projection"
        mapping[f"blocks.0.{norm}.after.shared.P"] = lambda t, P=P: t[P]
        for block in range(3):
            for ours, theirs in (("scale", "rescale"), ("bias", "bias")):
                key = f"transformer.layer.{block}.{site}_adapter.adapter_{theirs}"
                mapping[f"blocks.{block}.{norm}.after.{ours}"] = lambda t, key=key: t[key]
    tuned = reproduce("arc", "vit", ARC(bottleneck=8), mapping)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_equals_a_restatement(stream: bool) -> None:
    tuned = vpeft.tune(base_vit(), ARC(bottleneck=5, stream=stream), show=False)
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}
    second = "stream1" if stream else "norm2"
    for block in range(3):
        for place in ("norm1", second):
            key = f"blocks.{block}.{place}.after"
            P = own[f"blocks.0.{place}.after.shared.P"]
            dense = torch.eye(48) + P @ torch.diag(own[f"{key}.scale"][0]) @ P.T

            def change(z, came, dense=dense, bias=own[f"{key}.bias"]):  # type: ignore[no-untyped-def]
                return z @ dense.T + bias

            if place == "stream1":  # the branch gains what the sum gains
                changes[f"blocks.{block}.attn_branch"] = lambda h, x, change=change: change(x + h, None) - x
            else:
                changes[f"blocks.{block}.{place}"] = change
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert tuned.plan().mergeable is not stream


def test_counts_and_starts() -> None:
    assert trained(ARC()) == 2 * 768 * 50 + 2 * 12 * (50 + 768) == 96_432
    assert trained(ARC(sites=("attn",))) == 48_216
    assert vpeft.tune(base_vit(), ARC(sites=("attn",)), show=False).verify().identity
    tuned = vpeft.tune(base_vit(), ARC(bottleneck=50), show=False)
    scales = torch.cat([p.flatten() for key, p in tuned.trainable() if "norm2.after.scale" in key])
    assert 0.3 < scales.abs().max() <= (6 / 51) ** 0.5  # Xavier-uniform on (1, 50)


def test_one_projection_for_each_stage() -> None:
    tuned = vpeft.tune(tiny_swin(), ARC(bottleneck=4), show=False)
    assert sum("shared.P" in key for key, _ in tuned.trainable()) == 4
    randomise(tuned)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)
