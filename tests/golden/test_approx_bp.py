"""Approx-BP: an exact forward pass, the authors' slopes, and two bits for each number."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vpeft
from tests.golden.by_hand import ViTByHand, randomise
from tests.golden.parity import base_vit
from tests.golden.saved import saved_by
from tests.models import images_for, tiny_convnext, tiny_vit
from vpeft.methods import ApproxBP, LoRA
from vpeft.methods.approx_bp import STEPS, THRESHOLDS, StepSlopes


@pytest.mark.parametrize(("kind", "function"), [("gelu", F.gelu), ("silu", F.silu)])
def test_slopes_are_those_of_three_relus_near_the_activation(kind: str, function: object) -> None:
    x = torch.linspace(-9, 9, 1801, dtype=torch.float64, requires_grad=True)
    out = StepSlopes(kind)(function(x).detach(), x)  # type: ignore[operator]
    assert torch.equal(out, function(x))  # type: ignore[operator]
    (slope,) = torch.autograd.grad(out.sum(), x)
    y = torch.linspace(-9, 9, 1801, dtype=torch.float64, requires_grad=True)
    near = sum(a * F.relu(y - c) for a, c in zip(STEPS[kind], THRESHOLDS[kind], strict=True))
    (wanted,) = torch.autograd.grad(near.sum(), y)
    assert torch.allclose(slope, wanted)
    assert float((near - function(y)).detach().abs().max()) < 0.3  # type: ignore[operator]
    assert sum(STEPS[kind]) == pytest.approx(1.0, abs=1e-6)


def test_equals_a_restatement_and_merges() -> None:
    tuned = vpeft.tune(base_vit(), LoRA(rank=2, targets=("q", "v", "fc1")), ApproxBP(), show=False)
    randomise(tuned)
    own, plain = dict(tuned.trainable()), base_vit()

    class Surrogate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return F.gelu(x)

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            (x,) = ctx.saved_tensors
            return grad * sum(a * (x > c) for a, c in zip(STEPS["gelu"], THRESHOLDS["gelu"], strict=True))

    changes = {}
    for i in range(3):
        A, B = ([own[f"blocks.{i}.{p}.parallel.{n}"] for p in ("attn.q", "attn.v", "mlp.fc1")] for n in "AB")
        changes[f"blocks.{i}.qkv"] = lambda y, x, A=A, B=B: (
            y + torch.cat([x @ A[0].T @ B[0].T, torch.zeros_like(x), x @ A[1].T @ B[1].T], dim=-1)
        )

        def mlp(y, x, A=A, B=B, m=plain.blocks[i].mlp):  # type: ignore[no-untyped-def]
            return m.fc2(Surrogate.apply(m.fc1(x) + x @ A[2].T @ B[2].T))

        changes[f"blocks.{i}.mlp"] = mlp
    images = images_for(plain)
    expected = ViTByHand(plain, changes)(images)
    parameters = list(own.values())
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    found = tuned.features(images)
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    for name, a, b in zip(own, torch.autograd.grad(found.square().sum(), parameters), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max() + 1e-6), rtol=1e-3), name
    assert tuned.plan().mergeable
    assert torch.allclose(tuned.merge().features(images), expected, atol=1e-4)


def test_forward_is_bit_equal_and_no_parameter_is_added() -> None:
    for make in (tiny_vit, tiny_convnext):
        model = make()
        images = images_for(model)
        before = model(images)
        tuned = vpeft.tune(model, ApproxBP(), num_classes=2, show=False)
        assert torch.equal(tuned.features(images), before)
        plan = tuned.plan()
        assert (plan.trainable, plan.reach) == (0, "none")


def test_keeps_two_bits_for_each_number() -> None:
    images = images_for(tiny_vit())
    kept = []
    for methods in ((LoRA(targets=("q",)),), (LoRA(targets=("q",)), ApproxBP())):
        tuned = vpeft.tune(tiny_vit(), *methods, num_classes=2, show=False).train()
        kept.append(saved_by(tuned, images).total)
    inside = 3 * 2 * 17 * 192  # numbers at the GELUs of three blocks, 4 bytes each
    assert kept[0] - kept[1] == 4 * inside - inside // 4


def test_needs_an_activation() -> None:
    class Other(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.tanh()

    with pytest.raises(vpeft.MissingPlace, match="GELU and SiLU"):
        vpeft.tune(tiny_vit(act_layer=Other), ApproxBP(), show=False)
