"""Modules at a matrix that have a drop path of their own, and a shift of some channels."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from .bottleneck import Bottleneck
from .low_rank import LowRank


class SparseShift(nn.Module):
    """y (..., D) -> y + values at some channels; the values start at zero."""

    index: Tensor

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("index", (torch.arange(count) * width // count).int())
        self.values = nn.Parameter(torch.zeros(count))

    def forward(self, y: Tensor) -> Tensor:
        return y + self.affine()[1].to(y.dtype)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale (ones) and shift, each (D,)."""
        shift = self.values.new_zeros(self.width).scatter_add(0, self.index.long(), self.values)
        return torch.ones_like(shift), shift


class DroppedLowRank(LowRank):
    """x -> DP(B A drop(x))."""

    def __init__(self, width_in: int, width: int, rank: int, dropout: float, drop_path: float) -> None:
        super().__init__(width_in, width, rank, dropout=dropout)
        self.path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.path(super().forward(x)))


class OnOutput(nn.Module):
    """y -> y + DP(U GELU(D drop(y) + b_1) + b_2), or without y itself where it reads something else."""

    def __init__(self, width: int, rank: int, dropout: float, drop_path: float, alone: bool) -> None:
        super().__init__()
        self.inner, self.alone = Bottleneck(width, rank, activation="gelu"), alone
        self.dropout, self.path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(self, y: Tensor) -> Tensor:
        change = torch.as_tensor(self.path(self.inner(self.dropout(y))))
        return change if self.alone else y + change
