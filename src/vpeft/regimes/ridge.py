"""Ridge regression on sums over images, as RanPAC solves it, and the choice of its strength."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vpeft.errors import VpeftError

# The strengths that RanPAC's code tries.
RIDGES = tuple(10.0**power for power in range(-8, 9))
# Share of a task's images that a strength is fitted to; the rest chooses it.
FITTED = 0.8


class NoRidge(VpeftError):
    """No strength of the ridge gives a system that can be solved."""


def solution(gram: Tensor, cross: Tensor, ridge: float) -> Tensor | None:
    """(G + r I)^-1 Q by Cholesky's factorisation; None where that is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
    if int(failed):
        return None
    return torch.cholesky_solve(cross, factor)


def chosen_ridge(hidden: Tensor, targets: Tensor, order: Tensor, ridges: Sequence[float] = RIDGES) -> float:
    """The strength with the least squared error on the last fifth of the images in this order, fitted to the others.

    Args:
        hidden: H (N, M).
        targets: Y (N, K), one-hot.
        order: a permutation of the N images.
        ridges: to choose from.
    """
    split = max(1, int(len(order) * FITTED))
    fit, rest = order[:split], order[split:]
    if not len(rest):
        rest = fit
    gram, cross = hidden[fit].T @ hidden[fit], hidden[fit].T @ targets[fit]
    errors: dict[float, float] = {}
    for ridge in ridges:
        solved = solution(gram, cross, ridge)
        if solved is not None:
            errors[ridge] = float((hidden[rest] @ solved - targets[rest]).square().mean())
    if not errors:
        raise NoRidge("No strength of the ridge gives a system that can be solved; take a smaller projection.")
    return min(errors, key=lambda ridge: errors[ridge])
