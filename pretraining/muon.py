"""Muon (Jordan et al. 2024): momentum whose matrix is made orthogonal before each step, for the matrices of the blocks.

Scaled as in Liu et al. 2025 (arXiv 2502.16982, section 2.2), so that a step is about as large as AdamW's.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

# The polynomial of the authors' implementation; it drives singular values towards one, not exactly to it
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalised(stack: Tensor) -> Tensor:
    """The matrices of `stack` (n, rows, columns) with singular values near one, by Newton and Schulz' iteration."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay; every parameter must be a matrix."""

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, parameters in alike.items():  # equal shapes in one batched product
                updates = []
                for p in parameters:
                    held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    held.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(held, group["momentum"]))
                size = 0.2 * max(shape) ** 0.5
                for p, update in zip(parameters, orthogonalised(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)
