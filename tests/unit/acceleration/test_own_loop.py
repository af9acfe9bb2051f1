"""`vpeft.accelerate` in a loop of one's own: the same training, and nothing is left on the model."""

from __future__ import annotations

import copy

import torch
from torch import nn

import vpeft
from tests.models import tiny_vit
from vpeft.injection.tuned_model import TunedModel


def _steps(tuned: TunedModel, images: torch.Tensor) -> list[float]:
    optimiser = torch.optim.SGD([parameter for _, parameter in tuned.trainable()], lr=0.1)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(tuned(images), torch.tensor([0, 1, 2, 0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def test_an_own_loop_trains_alike_with_it_and_finds_nothing_afterwards() -> None:
    torch.manual_seed(0)
    plain = vpeft.tune(tiny_vit(), vpeft.methods.LoRA(rank=2), num_classes=3).train()
    fast = copy.deepcopy(plain)
    images = torch.randn(4, 3, 32, 32)
    before = [(type(module), set(module.__dict__)) for module in fast.modules()]
    with vpeft.accelerate(fast) as used:
        lines = used.lines()
        assert any(line.startswith("+ class_token_only") for line in lines)
        assert any(line.startswith("+ fused_low_rank") for line in lines)
        accelerated = _steps(fast, images)
    assert [(type(module), set(module.__dict__)) for module in fast.modules()] == before
    torch.testing.assert_close(torch.tensor(accelerated), torch.tensor(_steps(plain, images)), rtol=1e-5, atol=1e-6)
    for (name, ours), (_, theirs) in zip(fast.trainable(), plain.trainable(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
