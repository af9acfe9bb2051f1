"""A linear map in groups of channels."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """x (..., in) -> DP(G shuf(x) + h), G (out, in / g)."""

    dormant: dict[str, str]

    def __init__(self, width_in: int, width: int, groups: int, shuffle: bool, drop_path: float) -> None:
        super().__init__()
        self.groups, self.shuffle, self.dormant = groups, shuffle, {}
        self.weight = nn.Parameter(torch.empty(width, width_in // groups).uniform_(-1e-3, 1e-3))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-1e-3, 1e-3))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.reshape(*x.shape[:-1], self.groups, -1)
        if self.shuffle:
            pieces = pieces.mT.reshape(pieces.shape)
        grouped = self.weight.reshape(self.groups, -1, self.weight.shape[1])
        out: Tensor = self.drop_path(torch.einsum("...gi,goi->...go", pieces, grouped).flatten(-2) + self.bias)
        return out

    def weight_delta(self) -> tuple[Tensor, Tensor]:
        """The dense weight (out, in) and the bias (out,)."""
        dense: Tensor = torch.block_diag(*self.weight.chunk(self.groups))  # type: ignore[no-untyped-call]
        if self.shuffle:  # column j of G reads channel order[j]
            order = torch.arange(dense.shape[1], device=dense.device).reshape(self.groups, -1).T.flatten()
            dense = torch.zeros_like(dense).index_copy(1, order, dense)
        return dense, self.bias
