"""SSL and SSB: the authors' numbers, restatements, counts, merging; MPC's patterns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit, reproduce
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.methods import MPC, SSB, SSL, LoRA, Method

PLACES = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}


def test_ssl_equals_the_authors_code() -> None:
    mapping = {
        f"blocks.{block}.{place}.reparametrize.inputs": lambda t, key=f"blocks.{block}.{place}.lora": t[key]
        for block in range(3)
        for place in PLACES
    }
    tuned = reproduce("ssl", "vit", SSL(), mapping)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5)


@pytest.mark.parametrize("method", [SSL(), SSB(), SSB(sides="outputs")], ids=repr)
def test_equals_a_restatement_that_leaves_the_bias_alone(method: Method) -> None:
    tuned = vpeft.tune(base_vit(), method, show=False)
    randomise(tuned)
    values, changes, plain = dict(tuned.trainable()), {}, base_vit()
    for block in range(3):
        for place, short in PLACES.items():
            layer = plain.get_submodule(f"blocks.{block}.{place}")
            l = values.get(f"blocks.{block}.{place}.reparametrize.inputs", torch.ones(1))  # noqa: E741
            r = values.get(f"blocks.{block}.{place}.reparametrize.outputs", torch.ones(1))

            def change(_, x, layer=layer, l=l, r=r):  # type: ignore[no-untyped-def] # noqa: E741
                return r * ((l * x) @ layer.weight.T) + layer.bias

            changes[f"blocks.{block}.{short}"] = change
    x = images_for(plain)
    expected = ViTByHand(plain, changes)(x)
    assert torch.allclose(tuned.features(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.allclose(tuned.merge().features(x), expected, atol=1e-4, rtol=1e-4)


def test_slices_of_a_fused_projection_are_scaled_alone_and_merge() -> None:
    tuned = vpeft.tune(base_vit(), SSB(targets=("k", "fc1")), show=False)
    randomise(tuned)
    layer, plain = tuned.adapter().get_submodule("blocks.0.attn.k.reparametrize"), base_vit().blocks[0].attn.qkv
    x = torch.randn(2, 17, 48)
    q, _, v = F.linear(x, plain.weight, plain.bias).chunk(3, dim=-1)
    k = layer.outputs * ((layer.inputs * x) @ plain.weight[48:96].T) + plain.bias[48:96]
    assert torch.allclose(tuned.backbone.blocks[0].attn.qkv(x), torch.cat([q, k, v], dim=-1), atol=1e-5)
    x = images_for(tuned.backbone)
    before = tuned.features(x)
    assert torch.allclose(tuned.merge().features(x), before, atol=1e-5)


def test_counts() -> None:
    assert trained(SSL()) == 64_512
    assert trained(SSB()) == 147_456
    assert trained(SSB(sides="outputs")) == 82_944
    subset = ("k", "v", "fc1")
    assert trained(SSL(targets=subset)) == 27_648
    assert trained(SSB(targets=subset)) == 82_944


def test_convolutions_scale_channels_whatever_their_groups() -> None:
    tuned = vpeft.tune(tiny_convnext(), SSB(targets=("conv",)), show=False)
    randomise(tuned)
    conv, layer = (
        tuned.backbone.stages[0].blocks[0].conv_dw,
        tuned.adapter().get_submodule("blocks.0.conv.reparametrize"),
    )
    x = torch.randn(2, 16, 9, 9)
    scaled = F.conv2d(x * layer.inputs[:, None, None], conv.weight, None, padding=3, groups=16)
    expected = scaled * layer.outputs[:, None, None] + conv.bias[:, None, None]
    assert torch.allclose(conv(x), expected, atol=1e-4)
    from vpeft.layers.weight_scale import WeightScale

    two = WeightScale((6, 2, 3, 3), groups=2)
    torch.nn.init.normal_(two.inputs)
    torch.nn.init.normal_(two.outputs)
    x, w = torch.randn(1, 4, 5, 5), torch.randn(6, 2, 3, 3)
    expected = F.conv2d(x * two.inputs[:, None, None], w, groups=2) * two.outputs[:, None, None]
    assert torch.allclose(F.conv2d(x, two(w), groups=2), expected, atol=1e-4)


def test_targets_that_are_missing_are_named() -> None:
    with pytest.raises(vpeft.MissingPlace, match=r"no projection 'qkv'. It has: conv, fc1, fc2"):
        vpeft.tune(tiny_convnext(), SSL(), show=False)


def pattern(tuned: vpeft.TunedModel, kind: str, squared: bool) -> Tensor:
    power, found = 2.0 if squared else 1.0, []
    tensors = dict(tuned.trainable())
    for key, a in tensors.items():
        if key.endswith(".A"):
            b = tensors[key[:-1] + "B"]
            off = b.T @ b - torch.eye(len(a))
            if kind == "d":
                off = b.T @ b * (1 - torch.eye(len(a)))
            found += [(a @ a.T - torch.eye(len(a))).square().sum() ** (power / 2), off.square().sum() ** (power / 2)]
    return sum(found) / len(found)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("kind", ["o", "d"])
def test_mpc_penalises_its_own_and_another_methods_factors(kind: str, squared: bool) -> None:
    constraint = {"pattern": kind, "squared": squared, "weight": 0.3}
    alone = vpeft.tune(base_vit(), MPC(rank=3, **constraint), show=False)
    beside = vpeft.tune(base_vit(), LoRA(rank=3, targets=("k", "fc1")), MPC(rank=0, **constraint), show=False)
    assert (
        beside.plan().trainable
        == vpeft.tune(base_vit(), LoRA(rank=3, targets=("k", "fc1")), show=False).plan().trainable
    )
    for tuned in (alone, beside):
        randomise(tuned)
        expected = 0.3 * pattern(tuned, kind, squared)
        assert torch.allclose(tuned.penalty(), expected, rtol=1e-5)
        tuned.penalty().backward()
        assert all(bool(p.grad.any()) for _, p in tuned.trainable())


def test_mpc_finds_factors_at_convolutions_too() -> None:
    tuned = vpeft.tune(tiny_convnext(), LoRA(rank=2, targets=("conv",)), MPC(rank=0), show=False)
    assert float(tuned.penalty().detach()) > 0


def test_mpc_pattern_n_bends_the_update() -> None:
    tuned = vpeft.tune(base_vit(), MPC(pattern="n", rank=3, targets=("fc1",)), show=False)
    randomise(tuned)
    assert tuned.penalty() is None
    t, changes = dict(tuned.trainable()), {}
    for block in range(3):
        a, b = (t[f"blocks.{block}.mlp.fc1.parallel.{n}"] for n in "AB")
        changes[f"blocks.{block}.fc1"] = lambda y, x, a=a, b=b: y + (x @ a.T).clamp(min=0) @ b.T
    x = images_for(base_vit())
    assert torch.allclose(tuned.features(x), ViTByHand(base_vit(), changes)(x), atol=1e-4)
    with pytest.raises(vpeft.VpeftError, match="not a linear map"):
        tuned.merge()


def test_mpc_counts_and_refuses_what_makes_no_sense() -> None:
    assert trained(MPC()) == trained(MPC(pattern="n")) == 294_912
    with pytest.raises(vpeft.VpeftError, match="rank above 0"):
        vpeft.tune(tiny_vit(), MPC(pattern="n", rank=0), show=False)
    with pytest.raises(vpeft.VpeftError, match="changes nothing"):
        vpeft.tune(tiny_vit(), MPC(rank=0), show=False)
    with pytest.raises(vpeft.VpeftError, match="no low-rank factors"):
        vpeft.tune(tiny_vit(), SSL(), MPC(rank=0), show=False)
