"""A bottleneck with a depthwise convolution over time, height and width."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn


class SpatioTemporalBottleneck(nn.Module):
    """p -> p + W_2 C(W_1 p + b_1) + b_2 for the tokens p of the grid; tokens before the grid stay as they are.

    It takes frames one by one, (B * T, n + H * W, D) or (B * T, H, W, D), and whole clips, (B, n + T * H * W, D) or
    (B, T, H, W, D). C is depthwise and starts at zero, so that the layer starts as the identity.

    Args:
        width: D.
        hidden: channels of C.
        kernel: of C, odd numbers for time, height and width.
    """

    wants_grid = True
    wants_frames = True
    takes_time = True

    def __init__(self, width: int, hidden: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.dormant: dict[str, str] = {}
        self.down = nn.Linear(width, hidden)
        time, height, across = kernel
        padding = (time // 2, height // 2, across // 2)
        self.conv = nn.Conv3d(hidden, hidden, kernel, padding=padding, groups=hidden)
        self.up = nn.Linear(hidden, width)
        for layer in (self.down, self.conv, self.up):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.conv.weight)

    def unread(self) -> None:
        """Say that nothing behind this layer reads the grid, so that it cannot learn."""
        reason = "in the last block nothing reads the patches: the class token is the feature"
        self.dormant = dict.fromkeys((name for name, _ in self.named_parameters()), reason)

    def forward(self, x: Tensor, *, grid: tuple[int, ...], frames: int) -> Tensor:
        whole = grid if len(grid) == 3 else (frames, *grid)
        first = 0 if x.dim() > 3 else x.shape[1] - prod(grid)
        tokens = x[:, first:] if first else x
        z = self.down(tokens)
        clips = z.reshape(-1, *whole, z.shape[-1]).movedim(-1, 1)
        z = self.conv(clips).movedim(1, -1).reshape(z.shape)
        out: Tensor = tokens + self.up(z)
        return torch.cat([x[:, :first], out], dim=1) if first else out
