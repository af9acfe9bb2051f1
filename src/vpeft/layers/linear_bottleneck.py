"""A bottleneck without a nonlinearity, so it can be folded into a neighbouring linear layer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import VpeftError

Start = Literal["xavier", "normal", "kaiming"]


class LinearBottleneck(nn.Module):
    """x -> s (U drop(D x + d) + u), perhaps plus x.

    Args:
        width_in, width: channels of x (..., width_in) and of the result (..., width).
        bottleneck: R.
        scale: s; it multiplies the biases too.
        dropout: between the two maps.
        groups: of U: output channels of group i read the inner channels of group i alone, U is (width, R / groups).
        residual: whether x itself is added, for use in series.
        start: of D: Xavier-uniform, N(0, 0.02), or Kaiming-uniform as nn.Linear.

    U, d and u start at zero, so the map starts at zero (with `residual`: as the identity).
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        bottleneck: int,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        groups: int = 1,
        residual: bool = False,
        start: Start = "xavier",
    ) -> None:
        super().__init__()
        if bottleneck % groups or width % groups:
            raise VpeftError(f"{groups} groups must divide the bottleneck ({bottleneck}) and the width ({width}).")
        self.down = nn.Linear(width_in, bottleneck)
        self.up = nn.Parameter(torch.zeros(width, bottleneck // groups))
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        self.scale, self.groups, self.residual = scale, groups, residual
        if start == "xavier":
            nn.init.xavier_uniform_(self.down.weight)
        elif start == "normal":
            nn.init.normal_(self.down.weight, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(self.down(x))
        if self.groups == 1:
            out = nn.functional.linear(inner, self.up, self.bias)
        else:
            inner = inner.reshape(*inner.shape[:-1], self.groups, -1)
            grouped = self.up.reshape(self.groups, -1, self.up.shape[1])
            out = torch.einsum("...gr,gdr->...gd", inner, grouped).flatten(-2) + self.bias
        out = out * self.scale
        return x + out if self.residual else out

    def weight_delta(self) -> tuple[Tensor, Tensor]:
        """Return the updates of a parallel projection's weight (width, width_in) and bias (width,)."""
        dense: Tensor = torch.block_diag(*self.up.chunk(self.groups))  # type: ignore[no-untyped-call]
        return self.scale * dense @ self.down.weight, self.scale * (dense @ self.down.bias + self.bias)

    def linear_map(self) -> tuple[Tensor, Tensor]:
        """M and m of x -> M x + m."""
        matrix, shift = self.weight_delta()
        if self.residual:
            matrix = matrix + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return matrix, shift
