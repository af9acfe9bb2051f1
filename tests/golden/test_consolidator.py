"""Consolidator restated with grouped convolutions, counted and merged."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for
from vpeft.methods import Consolidator


@pytest.mark.parametrize("shuffle", [False, True])
def test_equals_a_restatement_and_merges(shuffle: bool) -> None:
    method = Consolidator(groups=(24, 12), shuffle=shuffle, train_norms=False, train_biases=False)
    tuned = vpeft.tune(base_vit(), method, show=False)
    randomise(tuned)
    own, changes = dict(tuned.trainable()), {}

    def branch(x, key, groups):  # type: ignore[no-untyped-def]
        rows = x.flatten(0, 1)
        if shuffle:  # channel (group g, number i) goes to (i, g)
            rows = torch.stack([rows[:, i :: rows.shape[1] // groups] for i in range(rows.shape[1] // groups)], 1)
            rows = rows.flatten(1)
        made = F.conv1d(rows[..., None], own[f"{key}.weight"][..., None], own[f"{key}.bias"], groups=groups)
        return made[..., 0].unflatten(0, x.shape[:2])

    for i in range(3):
        for place in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            key = f"blocks.{i}.{place}.parallel"
            changes[f"blocks.{i}.{place.split('.')[1]}"] = lambda y, x, key=key: (
                y + branch(x, key, 24) + branch(x, f"{key}_2", 12)
            )
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_trained_biases_and_norms_merge_too() -> None:
    tuned = vpeft.tune(base_vit(), Consolidator(groups=(12,), shuffle=True), show=False)
    randomise(tuned)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)
    assert torch.equal(tuned.unmerge().features(x), before)


def test_counts_and_starts() -> None:
    deployed = 221_184 + 82_944
    assert trained(Consolidator(train_norms=False, train_biases=False)) == deployed == 304_128
    assert trained(Consolidator()) == deployed + 82_944 + 38_400  # the branches' biases fold into the layers' own
    x = images_for(base_vit())
    tuned = vpeft.tune(base_vit(), Consolidator(groups=(24,)), show=False).eval()
    assert torch.allclose(tuned.features(x), base_vit()(x), atol=2e-2)
    own = dict(tuned.trainable())
    assert 9e-4 < own["blocks.0.mlp.fc1.parallel.weight"].abs().max() <= 1e-3


def test_groups_must_divide() -> None:
    with pytest.raises(vpeft.MissingPlace, match="7 groups do not divide"):
        vpeft.tune(base_vit(), Consolidator(groups=(7,)), show=False)
