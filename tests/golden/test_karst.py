"""KARST restated with dense Kronecker products, counted and merged."""

from __future__ import annotations

import torch

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.counts import trained
from tests.golden.parity import base_vit
from tests.models import images_for, tiny_convnext
from vpeft.methods import KARST


def test_equals_a_restatement() -> None:
    tuned = vpeft.tune(base_vit(), KARST(rank=3, kernels=2, factor=4, scale=0.5), show=False)
    randomise(tuned, 0.2)
    own, plain, changes = dict(tuned.trainable()), base_vit(), {}

    def delta(place: str, shares: str = "") -> torch.Tensor:
        C, B = (own[f"{shares or place}.reparametrize.kernels.{n}"] for n in "CB")
        A = own[f"{place}.reparametrize.A"]
        return 0.5 * sum(torch.kron(C[i], A[i] @ B[i]) for i in range(2))

    for i in range(3):
        block = f"blocks.{i}"
        qkv = torch.cat([delta(f"{block}.attn.{n}", f"{block}.attn.q") for n in "qkv"])
        s, t = own[f"{block}.attn.v.after.scale"], own[f"{block}.attn.v.after.shift"]
        changes[f"{block}.qkv"] = lambda y, x, w=qkv: y + x @ w.T
        # behind the attention, before its projection: there the paper has it
        for name, place in (("proj", "attn.proj"), ("fc2", "mlp.fc2")):
            pair = [own[f"{block}.{place}.after.{n}"] for n in ("scale", "shift")]
            layer = plain.get_submodule(f"{block}.{place}")
            before = (s, t) if name == "proj" else (torch.ones(1), torch.zeros(1))

            w = delta(f"{block}.{place}")

            def change(y, x, w=w, pair=pair, layer=layer, before=before):  # type: ignore[no-untyped-def]
                x = x * before[0] + before[1]
                return (x @ (layer.weight + w).T + layer.bias) * pair[0] + pair[1]

            changes[f"{block}.{name}"] = change
        up = delta(f"{block}.mlp.fc1")
        changes[f"{block}.fc1"] = lambda y, x, w=up: y + x @ w.T
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-5)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3), name
    assert torch.allclose(tuned.merge().features(images), expected, atol=1e-4)


def test_counts_and_starts() -> None:
    qkv = 8 * 8 + 3 * 96 * 8 + 8 * 96
    one = qkv + (64 + 2 * 768) + 2 * (64 + 768 + 3072)
    assert trained(KARST(rescale=False)) == 12 * 2 * one
    assert trained(KARST()) == 12 * (2 * one + 3 * 2 * 768) == 356_352
    assert vpeft.tune(base_vit(), KARST(), show=False).verify().identity


def test_scale_and_starts_are_those_of_the_code() -> None:
    """The code stores A as (R, D_out / c) and C as (c, c'), draws both within 1 / sqrt(columns), and has s = 1 / R."""
    assert KARST().scale == 1 / KARST().rank
    own = dict(vpeft.tune(base_vit(), KARST(factor=4), show=False).trainable())
    for place, width in (("attn.q", 48), ("attn.proj", 48), ("mlp.fc1", 192), ("mlp.fc2", 48)):
        for i in range(3):
            name = f"blocks.{i}.{place}.reparametrize"
            for values, bound in ((own[f"{name}.A"], (width / 4) ** -0.5), (own[f"{name}.kernels.C"], 0.5)):
                assert 0.7 * bound < float(values.detach().abs().max()) <= bound, name


def test_merges_beside_convolutions() -> None:
    tuned = vpeft.tune(tiny_convnext(), KARST(targets=("conv", "fc1", "fc2")), show=False)
    randomise(tuned)
    images = images_for(tuned.backbone)
    before = tuned.features(images)
    assert torch.allclose(tuned.merge().features(images), before, atol=1e-4, rtol=1e-4)
