"""Low-rank updates of a linear layer or a convolution."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """x -> scale * B A drop(x), in parallel to a linear layer.

    Args:
        width_in: D_in of x, (..., D_in).
        width: D_out of the result, (..., D_out).
        rank: R.
        scale: factor of the product.
        dropout: probability on x, in training only.

    A starts Kaiming-uniform with a = sqrt(5), as nn.Linear does, and B at zero, so the output starts at zero (loralib).
    """

    def __init__(self, width_in: int, width: int, rank: int, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width_in))
        self.B = nn.Parameter(torch.zeros(width, rank))
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(F.linear(self.dropout(x), self.A), self.B)
        return out if self.scale == 1.0 else out * self.scale  # a factor of one would still cost a pass over memory

    def weight_delta(self) -> tuple[Tensor, None]:
        """Return the update of the weight (D_out, D_in)."""
        return self.scale * self.B @ self.A, None


class LowRankFromStart(LowRank):
    """x -> scale * (B A drop(x) - B0 A0 x): the same beside a layer whose weight has lost scale * B0 A0 (PiSSA, OLoRA).

    A0 and B0 are where A and B start; they are frozen, and saved with the adapter. So step 0 is the frozen layer.
    """

    A0: Tensor
    B0: Tensor

    def __init__(self, A: Tensor, B: Tensor, scale: float, dropout: float) -> None:
        super().__init__(A.shape[1], len(B), len(A), scale, dropout)
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.register_buffer("A0", A)
        self.register_buffer("B0", B)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - F.linear(F.linear(x, self.A0), self.B0) * self.scale

    def weight_delta(self) -> tuple[Tensor, None]:
        return self.scale * (self.B @ self.A - self.B0 @ self.A0), None


class LowRankWeight(nn.Module):
    """W -> W + scale * reshape(B A), for a weight of any shape (out, ...): linear, convolution, depthwise.

    With groups = 1 it equals a convolution to R channels followed by a 1x1 convolution.
    """

    def __init__(self, shape: tuple[int, ...], rank: int, scale: float = 1.0) -> None:
        super().__init__()
        width, *rest = shape
        self.A = nn.Parameter(torch.empty(rank, math.prod(rest)))
        self.B = nn.Parameter(torch.zeros(width, rank))
        self.scale = scale
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.B @ self.A).reshape(weight.shape)


class LowRankWeightFromStart(LowRankWeight):
    """W -> W + scale * reshape(B A - B0 A0), as `LowRankFromStart` for a weight of any shape."""

    A0: Tensor
    B0: Tensor

    def __init__(self, shape: tuple[int, ...], A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__(shape, len(A), scale)
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())
        self.register_buffer("A0", A)
        self.register_buffer("B0", B)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.B @ self.A - self.B0 @ self.A0)).reshape(weight.shape)
