"""Orthogonal matrices from skew-symmetric ones."""

from __future__ import annotations

import torch
from torch import Tensor


def cayley(skew: Tensor, terms: int | None = None) -> Tensor:
    """(I + Q) (I - Q)^-1 for each Q (..., b, b) with Q^T = -Q.

    Args:
        skew: Q.
        terms: with a number, that many terms I + 2 Q + 2 Q^2 + ... + Q^(terms - 1) of its Neumann series, the last one
            by half: no inverse, and orthogonal only for small Q.
    """
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    if terms is None:
        rotation: Tensor = torch.linalg.solve(eye - skew, eye + skew)  # both factors commute
        return rotation
    found, power = eye.expand_as(skew), eye
    for number in range(1, terms):
        power = power @ skew
        found = found + (power if number == terms - 1 and terms > 2 else 2 * power)
    return found
