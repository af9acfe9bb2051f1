"""Bottlenecks with a convolution over neighbouring tokens."""

from __future__ import annotations

from math import prod

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from .bottleneck import quick_gelu


class ConvolutionalBypass(nn.Module):
    """x -> s DP(W_u drop(q(C q(W_d x + b_d))) + b_u), with q = QuickGELU and C a dense 3x3 convolution.

    Args:
        width: D.
        hidden: h, channels of the convolution.
        scale: s.
        dropout: before W_u.
        drop_path: rate at which the bypass is dropped for a sample, independent of the main branch.
        xavier: start C Xavier-uniform, instead of as the identity.

    It takes (B, N, D) or (B, H, W, D). Tokens that are not on the grid (class token, registers, prompts; they come
    first) each pass C as an image of one pixel, which meets the centre of the kernel only.
    W_d starts Xavier-uniform; W_u and all biases at zero. The frames of a clip are convolved one by one.
    """

    wants_grid = True

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        xavier: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.up = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)
        nn.init.xavier_uniform_(self.down.weight)
        if xavier:
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, *, grid: tuple[int, ...]) -> Tensor:
        hidden = quick_gelu(self.down(x))
        hidden = quick_gelu(self._map(hidden) if hidden.dim() == 4 else self._row(hidden, grid))
        out: Tensor = self.drop_path(self.up(self.dropout(hidden))) * self.scale
        return out

    def _map(self, hidden: Tensor) -> Tensor:
        """(B, H, W, h) -> the same shape."""
        out: Tensor = self.conv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out

    def _row(self, hidden: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, n + H * W, h) -> the same shape; (B, n + T * H * W, h) for clips."""
        batch, count, width = hidden.shape
        first = count - prod(grid)
        mapped = self._map(hidden[:, first:].reshape(-1, *grid[-2:], width)).reshape(batch, -1, width)
        if first == 0:
            return mapped
        centre = F.linear(hidden[:, :first], self.conv.weight[:, :, 1, 1], self.conv.bias)
        return torch.cat([centre, mapped], dim=1)
