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
        time: steps of time that C spans, an odd number; 1 convolves the frames of a clip one by one.

    It takes (B, N, D) or (B, H, W, D). Tokens that are not on the grid (class token, registers, prompts; they come
    first) each pass C as an image of one pixel, which meets the centre of the kernel only.
    W_d starts Xavier-uniform; W_u and all biases at zero.
    """

    wants_grid = True
    wants_frames = True

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        xavier: bool = False,
        time: int = 1,
    ) -> None:
        super().__init__()
        self.scale, self.takes_time = scale, time > 1
        self.down = nn.Linear(width, hidden)
        self.conv: nn.Conv2d | nn.Conv3d = nn.Conv2d(hidden, hidden, 3, padding=1)
        if self.takes_time:
            self.conv = nn.Conv3d(hidden, hidden, (time, 3, 3), padding=(time // 2, 1, 1))
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

    def forward(self, x: Tensor, *, grid: tuple[int, ...], frames: int = 1) -> Tensor:
        hidden = quick_gelu(self.down(x))
        # what C sees at once: the map of a frame, or of a whole clip
        shape = ((frames, *grid) if len(grid) == 2 else grid) if self.takes_time else grid[-2:]
        hidden = quick_gelu(self._map(hidden, shape) if hidden.dim() > 3 else self._row(hidden, grid, shape))
        out: Tensor = self.drop_path(self.up(self.dropout(hidden))) * self.scale
        return out

    def _map(self, hidden: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(B, H, W, h) -> the same shape; for clips also (B * T, H, W, h) and (B, T, H, W, h)."""
        maps = hidden.reshape(-1, *shape, hidden.shape[-1]).movedim(-1, 1)
        out: Tensor = self.conv(maps).movedim(1, -1).reshape(hidden.shape)
        return out

    def _row(self, hidden: Tensor, grid: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """(B, n + H * W, h) -> the same shape; (B * T, n + H * W, h) or (B, n + T * H * W, h) for clips."""
        first = hidden.shape[1] - prod(grid)
        mapped = self._map(hidden[:, first:], shape)
        if first == 0:
            return mapped
        kernel = self.conv.weight
        if self.takes_time:
            kernel = kernel[:, :, kernel.shape[2] // 2]
        centre = F.linear(hidden[:, :first], kernel[:, :, 1, 1], self.conv.bias)
        return torch.cat([centre, mapped], dim=1)
