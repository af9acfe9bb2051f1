"""Adapter: NOAH's numbers, each variant restated, counts, and what the published starts do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import SWIN_B, trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.methods import Adapter


def test_equals_the_authors_code() -> None:
    mapping = {}
    for block in range(3):
        for ours, theirs in (("down", "ln1"), ("up", "ln2")):
            for kind in ("weight", "bias"):
                key = f"blocks.{block}.adapter.{theirs}.{kind}"
                mapping[f"blocks.{block}.mlp_branch.after.{ours}.{kind}"] = lambda t, key=key: t[key]
    reproduce("adapter", "vit", Adapter(variant="noah", bottleneck=8), mapping)


def quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


RESTATED = {
    "houlsby": (("attn", "mlp"), F.gelu, 64),
    "pfeiffer": (("",), F.relu, 3),
    "noah": (("mlp_branch",), quick, 8),
    "vpetl": (("mlp",), F.gelu, 1),
    "vpt": (("mlp",), F.gelu, 6),
}


@pytest.mark.parametrize("variant", RESTATED)
def test_variants_equal_a_restatement(variant: str) -> None:
    tuned = vpeft.tune(base_vit(), Adapter(variant=variant), show=False)
    randomise(tuned)
    sites, f, width = RESTATED[variant]
    values, changes = dict(tuned.trainable()), {}
    for block in range(3):
        for site in sites:
            place = f"blocks.{block}.{site}".rstrip(".")
            wd, bd, wu, bu = (
                values[f"{place}.after.{n}"] for n in ("down.weight", "down.bias", "up.weight", "up.bias")
            )
            assert wd.shape == (width, 48)
            changes[place] = lambda h, _, p=(wd, bd, wu, bu): h + f(h @ p[0].T + p[1]) @ p[2].T + p[3]
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)


def test_counts() -> None:
    assert trained(Adapter()) == 156_768
    assert trained(Adapter(variant="vpetl")) == 156_768
    assert trained(Adapter(variant="houlsby", bottleneck=8)) == 313_536
    assert trained(Adapter(variant="houlsby")) == 2_379_264
    assert trained(Adapter(variant="vpt")) == 1_779_840
    assert trained(Adapter(variant="vpt", bottleneck=12)) == 230_544
    assert trained(Adapter(variant="vpt", bottleneck=3)) == 64_548
    assert trained(Adapter(variant="pfeiffer")) == 894_528
    assert trained(Adapter(last=3)) == 156_768 // 4
    assert round(trained(Adapter(variant="houlsby"), model=SWIN_B) / 1e6, 4) == 3.1073


def test_with_both_maps_at_zero_only_the_last_bias_learns() -> None:
    tuned = vpeft.tune(base_vit(), Adapter(variant="vpt", start="published"), num_classes=3, show=False)
    report = tuned.verify()
    assert report
    assert {key.split("after.")[1] for key in report.dormant} == {"down.weight", "down.bias", "up.weight"}
    optimizer = torch.optim.Adam((p for _, p in tuned.trainable()), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        tuned(images_for(base_vit())).square().mean().backward()
        optimizer.step()
    moved = {key.split("after.")[1] for key, p in tuned.trainable() if "after" in key and bool(p.any())}
    assert moved == {"up.bias"}


@pytest.mark.parametrize(("variant", "low", "high"), [("noah", 0.015, 0.025), ("houlsby", 5e-4, 1.2e-3)])
def test_published_starts(variant: str, low: float, high: float) -> None:
    method = Adapter(variant=variant, start="published")
    assert not method.starts_as_identity
    tuned = vpeft.tune(base_vit(), method, show=False)
    for key, p in tuned.trainable():
        assert low < float(p.detach().std()) < high if "weight" in key else not bool(p.any())


def test_in_noah_the_adapter_is_not_dropped_with_its_branch() -> None:
    for variant, kept in (("noah", True), ("vpt", False)):
        model = tiny_vit(drop_path_rate=0.999999, depth=2)
        tuned = vpeft.tune(model, Adapter(variant=variant, dropout=0.0), show=False).train()
        with torch.no_grad():
            for key, p in tuned.trainable():
                p.fill_(1.0) if key == "blocks.1.%s.after.up.bias" % ("mlp_branch" if kept else "mlp") else p.zero_()
        block = tuned.backbone.blocks[1]
        tokens = torch.randn(2, 17, 48)
        assert torch.allclose(block(tokens), tokens + (1.0 if kept else 0.0), atol=1e-6)


def test_houlsby_is_refused_without_attention() -> None:
    with pytest.raises(vpeft.MissingPlace, match="'attn'"):
        vpeft.tune(tiny_convnext(), Adapter(variant="houlsby"), show=False)
