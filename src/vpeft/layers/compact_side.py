"""Parts of a compact side network: a running low-rank sum, its write-back, and pooling over patches."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .low_rank import LowRank


class SideSum(LowRank):
    """(x, h) -> h + x A^T B^T; without h, x A^T B^T. x and h are (..., D), A is (R, D), B is (D, R)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, width, rank)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        change = super().forward(x)
        return change if before is None else before + change


class SwishWrite(nn.Module):
    """(z, h) -> z + F(theta(h)), theta(h) = h sigmoid(beta h), F the identity or a convolution over the grid.

    Args:
        beta: sharpness; at 100 it is almost a ReLU.
        fusion: a depthwise convolution (D channels) that all writes share; tokens before the grid skip it.
    """

    def __init__(self, beta: float, fusion: nn.Module | None = None) -> None:
        super().__init__()
        self.beta, self.fusion = beta, fusion
        self.wants_grid = fusion is not None

    def forward(self, z: Tensor, h: Tensor, *, grid: tuple[int, ...] = ()) -> Tensor:
        change = h * torch.sigmoid(self.beta * h)
        return z + (change if self.fusion is None else self._fuse(self.fusion, change, grid))

    def _fuse(self, fusion: nn.Module, change: Tensor, grid: tuple[int, ...]) -> Tensor:
        if change.dim() == 4:
            mapped: Tensor = fusion(change.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return mapped
        batch, count, width = change.shape
        first = count - prod(grid)
        frames = change[:, first:].reshape(-1, grid[-2] * grid[-1], width)  # one for each image, T for a clip
        patches = fusion(frames.transpose(1, 2).reshape(-1, width, *grid[-2:]))
        return torch.cat([change[:, :first], patches.flatten(2).transpose(1, 2).reshape(batch, -1, width)], dim=1)


def same_depthwise(width: int, kernel: int) -> nn.Conv2d:
    """Return a k x k depthwise convolution without bias that keeps the grid.

    For even k it pads one more cell at the right and bottom.
    """
    conv = SameConv2d if kernel % 2 == 0 else nn.Conv2d
    return conv(width, width, kernel, padding=(kernel - 1) // 2, groups=width, bias=False)


class SameConv2d(nn.Conv2d):
    """A convolution of even size; torch's own "same" padding copies with a warning."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


class PatchMean(nn.Module):
    """(B, P + N, D) -> the same shape, where every token is the mean of the N patches.

    Before the final norm, it makes any pooling (class token or mean) return LN(mean of the patches).
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.prefix :].mean(dim=1, keepdim=True).expand_as(x)
