"""AdaptFormer against its authors' numbers, and each option restated."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import SWIN_B, trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for
from vpeft.methods import AdaptFormer, LinearProbe


def test_equals_the_authors_code() -> None:
    mapping = {}
    for block in range(3):
        for part in ("down", "up"):
            for kind in ("weight", "bias"):
                key = f"blocks.{block}.adaptmlp.{part}_proj.{kind}"
                mapping[f"blocks.{block}.mlp_branch.parallel.{part}.{kind}"] = lambda t, key=key: t[key]
    reproduce("adaptformer", "vit", AdaptFormer(bottleneck=8, scale=0.5), mapping)


OPTIONS = [
    {},
    {"scale": 3.0},
    {"layer_norm": "in"},
    {"layer_norm": "out"},
    {"learn_scale": True, "scale": 1.0},
    {"activation": "gelu"},
    {"sequential": True},
    {"sequential": True, "layer_norm": "in", "scale": 1.0},
    {"start": "trunc_normal"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_equal_a_restatement(options: dict) -> None:
    method = AdaptFormer(bottleneck=5, **options)
    tuned = vpeft.tune(base_vit(), method, show=False)
    randomise(tuned)
    values, changes = dict(tuned.trainable()), {}
    verb = "after" if method.sequential else "parallel"
    for block in range(3):
        own = {key.split(f"{verb}.")[1]: p for key, p in values.items() if key.startswith(f"blocks.{block}.")}

        def change(h, x, own=own):  # type: ignore[no-untyped-def]
            came = h if method.sequential else x
            if method.layer_norm == "in":
                came = F.layer_norm(came, (48,), own["norm.weight"], own["norm.bias"])
            inner = came @ own["down.weight"].T + own["down.bias"]
            inner = F.gelu(inner) if method.activation == "gelu" else inner.clamp(min=0)
            scale = own["scale"] if method.learn_scale else method.scale
            out = (inner @ own["up.weight"].T + own["up.bias"]) * scale
            if method.layer_norm == "out":
                out = F.layer_norm(out, (48,), own["norm.weight"], own["norm.bias"])
            return h + out

        changes[f"blocks.{block}.mlp_branch"] = change
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


def test_counts() -> None:
    assert trained(AdaptFormer()) == 1_189_632
    assert trained(AdaptFormer(bottleneck=8)) == 156_768
    assert trained(AdaptFormer(bottleneck=8, layer_norm="in", scale=1.0)) == 175_200
    assert trained(AdaptFormer(bottleneck=8, learn_scale=True)) == 156_780
    assert round(trained(AdaptFormer(activation="gelu"), model=SWIN_B) / 1e6, 4) == 1.5537


def test_starts() -> None:
    assert AdaptFormer().starts_as_identity
    assert AdaptFormer(sequential=True).starts_as_identity
    tuned = vpeft.tune(base_vit(), AdaptFormer(start="trunc_normal", scale=1.0), show=False)
    x = images_for(base_vit())
    assert not torch.allclose(tuned.features(x), base_vit()(x), atol=1e-3)


def test_with_the_authors_head() -> None:
    tuned = vpeft.tune(base_vit(), AdaptFormer(), LinearProbe(batch_norm=True), num_classes=7, show=False).train()
    before = tuned.adapter().get_submodule("outlet.after").running_mean.clone()
    tuned(images_for(base_vit(), 4))
    assert not torch.equal(tuned.adapter().get_submodule("outlet.after").running_mean, before)
