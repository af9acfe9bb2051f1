"""RepAdapter and Hydra against their authors' numbers, restated, counted and merged."""

from __future__ import annotations

import pytest
import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_swin, tiny_vit
from vpeft.methods import Hydra, RepAdapter


def test_repadapter_equals_the_authors_code() -> None:
    mapping = {}
    ours = {"down.weight": "conv_A.weight", "down.bias": "conv_A.bias", "up": "conv_B.weight", "bias": "conv_B.bias"}
    for block in range(3):
        for norm, site in (("norm1", "attn"), ("norm2", "mlp")):
            for name, theirs in ours.items():
                key = f"blocks.{block}.adapter_{site}.{theirs}"
                mapping[f"blocks.{block}.{norm}.after.{name}"] = lambda t, key=key: t[key]
    tuned = reproduce("repadapter", "vit", RepAdapter(scale=0.5), mapping)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_repadapter_equals_a_restatement(groups: int) -> None:
    tuned = vpeft.tune(base_vit(), RepAdapter(bottleneck=4, groups=groups, scale=3.0), show=False)
    randomise(tuned)
    values, changes = dict(tuned.trainable()), {}
    for block in range(3):
        for norm in ("norm1", "norm2"):
            place = f"blocks.{block}.{norm}"
            a, ab, b, bb = (values[f"{place}.after.{n}"] for n in ("down.weight", "down.bias", "up", "bias"))
            dense = torch.zeros(48, 4)
            for row in range(48):
                group = row // (48 // groups)
                dense[row, group * 4 // groups : (group + 1) * 4 // groups] = b[row]
            changes[place] = lambda z, _, p=(a, ab, dense, bb): z + 3.0 * ((z @ p[0].T + p[1]) @ p[2].T + p[3])
    x = images_for(base_vit())
    expected = ViTByHand(base_vit(), changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4)


def test_repadapter_counts() -> None:
    assert trained(RepAdapter()) == 239_808
    assert trained(RepAdapter(sites=("attn",))) == 119_904
    biases = 24 * (8 + 768)
    assert trained(RepAdapter()) - biases == 221_184  # the printed 0.22 M leaves the biases out


def test_repadapter_merges_without_a_bias_and_on_swin() -> None:
    for model in (tiny_vit(qkv_bias=False), tiny_swin()):
        tuned = vpeft.tune(model, RepAdapter(), show=False)
        randomise(tuned)
        x = images_for(model)
        before = tuned.features(x)
        assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)
        assert torch.equal(tuned.unmerge().features(x), before)


def test_repadapter_on_convnext_leaves_the_shortcut_alone() -> None:
    tuned = vpeft.tune(tiny_convnext(), RepAdapter(groups=1), show=False)
    randomise(tuned)
    block, x = tuned.backbone.stages[0].blocks[0], torch.randn(1, 16, 8, 8)
    layers = {site: tuned.adapter().get_submodule(f"blocks.0.{site}") for site in ("conv.before", "norm2.after")}
    with torch.no_grad():
        a, b = layers["conv.before"], layers["norm2.after"]
        rows = x.permute(0, 2, 3, 1)
        rows = rows + (rows @ a.down.weight.T + a.down.bias) @ a.up.T + a.bias
        dw = block.conv_dw
        h = torch.nn.functional.conv2d(rows.permute(0, 3, 1, 2), dw.weight, dw.bias, padding=3, groups=16)
        h = torch.nn.functional.layer_norm(
            h.permute(0, 2, 3, 1), (16,), block.norm.weight, block.norm.bias, block.norm.eps
        )
        h = h + (h @ b.down.weight.T + b.down.bias) @ b.up.T + b.bias
        h = torch.nn.functional.gelu(h @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        h = (h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias) * block.gamma
        assert torch.allclose(block(x), x + h.permute(0, 3, 1, 2), atol=1e-4)
    with pytest.raises(vpeft.VpeftError, match="convolution"):
        tuned.merge()


def test_groups_must_divide() -> None:
    with pytest.raises(vpeft.VpeftError, match="3 groups must divide"):
        vpeft.tune(base_vit(), RepAdapter(groups=3), show=False)


def hydra_mapping() -> dict:
    mapping = {}
    names = {
        "down.weight": "down_proj.weight",
        "down.bias": "down_proj.bias",
        "up": "up_proj.weight",
        "bias": "up_proj.bias",
    }
    for block in range(3):
        for ours, theirs in (("attn.proj", "attn.hydra_proj"), ("mlp.fc2", "mlp.hydra_mlp")):
            for verb, branch in (("parallel", "par"), ("after", "seq")):
                for name, their_name in names.items():
                    key = f"blocks.{block}.{theirs}_{branch}.{their_name}"
                    mapping[f"blocks.{block}.{ours}.{verb}.{name}"] = lambda t, key=key: t[key]
    return mapping


def test_hydra_equals_the_authors_code_and_merges() -> None:
    tuned = reproduce("hydra", "vit", Hydra(rank=4, scale=0.5), hydra_mapping())
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5)
    plain = base_vit().state_dict()
    assert all(torch.equal(v, plain[k]) for k, v in tuned.unmerge().backbone.state_dict().items())


def test_hydra_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), Hydra(rank=3, scale=2.0), show=False)
    randomise(tuned)
    values, changes = dict(tuned.trainable()), {}
    for block in range(3):
        for place, short in (("attn.proj", "proj"), ("mlp.fc2", "fc2")):
            own = {k.split(f"{place}.")[1]: p for k, p in values.items() if k.startswith(f"blocks.{block}.{place}.")}

            def change(y, x, own=own):  # type: ignore[no-untyped-def]
                beside = (x @ own["parallel.down.weight"].T + own["parallel.down.bias"]) @ own["parallel.up"].T
                behind = (y @ own["after.down.weight"].T + own["after.down.bias"]) @ own["after.up"].T
                return y + 2.0 * (beside + own["parallel.bias"]) + 2.0 * (behind + own["after.bias"])

            changes[f"blocks.{block}.{short}"] = change
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4, rtol=1e-4)


def test_hydra_counts_and_starts() -> None:
    assert trained(Hydra()) == 239_712
    assert abs(trained(Hydra(), head=52) - 280_000) < 1_000  # the printed 0.28 M has the average head
    for start in ("xavier", "normal", "kaiming"):
        assert vpeft.tune(base_vit(), Hydra(start=start), show=False).verify().identity


def test_hydra_merges_on_convolutions() -> None:
    tuned = vpeft.tune(tiny_convnext(conv_mlp=True), Hydra(sites=("fc2",)), show=False)
    randomise(tuned)
    x = images_for(tiny_convnext())
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-4, rtol=1e-4)


def test_a_linear_map_behind_a_slice_merges_on_its_rows() -> None:
    from collections.abc import Iterator

    from vpeft.backbones.backbone import Backbone
    from vpeft.backbones.edits import Edit
    from vpeft.layers.linear_bottleneck import LinearBottleneck
    from vpeft.methods import Method

    class BehindKeys(Method):
        def edits(self, backbone: Backbone) -> Iterator[Edit]:
            for block in backbone.blocks:
                yield block.attn.k.after(LinearBottleneck(block.attn.k.width, block.attn.k.width, 2, residual=True))

    for bias in (True, False):
        tuned = vpeft.tune(tiny_vit(qkv_bias=bias), BehindKeys(), show=False)
        randomise(tuned)
        x = images_for(tuned.backbone)
        before = tuned.features(x)
        assert torch.allclose(tuned.merge().features(x), before, atol=1e-4)
        tuned.detach()
        assert not torch.allclose(before, tuned.backbone(x), atol=1e-3)
