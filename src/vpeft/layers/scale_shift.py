"""Affine maps per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """y -> scale * y + shift, for each channel of (..., D).

    Args:
        width: D.
        std: standard deviation of the start: scale N(1, std), shift N(0, std). So step 0 is close to the frozen model,
            but not equal to it (SSF).
    """

    def __init__(self, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.scale, mean=1.0, std=std)
        nn.init.normal_(self.shift, std=std)

    def forward(self, y: Tensor) -> Tensor:
        return y * self.scale + self.shift

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (D,)."""
        return self.scale, self.shift


class Shift(nn.Module):
    """y -> y + shift, for each channel of (..., D); starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, y: Tensor) -> Tensor:
        return y + self.shift

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale (ones) and shift, each (D,)."""
        return torch.ones_like(self.shift), self.shift


class Scale(nn.Module):
    """y -> scale * y, for each channel of (..., D).

    Args:
        width: D.
        start: first value of all scales.
    """

    def __init__(self, width: int, start: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, y: Tensor) -> Tensor:
        return y * self.scale

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (zeros), each (D,)."""
        return self.scale, torch.zeros_like(self.scale)
