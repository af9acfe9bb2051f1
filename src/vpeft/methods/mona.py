"""Mona: an adapter that looks at the neighbourhood through three kernel sizes."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register

Outside = Literal["bottleneck", "skip"]


@register("mona", category="addition", family="adapter", paper="2408.08345", year=2025, venue="CVPR")
class Mona(Method):
    """After each residual add, the stream passes a normed bottleneck with depthwise convolutions, and is kept.

    z = W_1 (g LN(x) + g_x x) + b_1 as a map, z' = (DW3 z + DW5 z + DW7 z) / 3 + z, z'' = z' + PW z',
    x + W_2 drop(GELU(z'')) + b_2, with x (B, H, W, D), W_1 (64, D), W_2 (D, 64), g and g_x (D,), PW 1x1. On the
    whole stream, at full resolution and outside drop path: once behind attention, once behind the MLP (a block with one
    branch has one).

    W_2 starts at N(0, 0.02), not at zero, so step 0 is not the frozen model; g starts at 1e-6, g_x at 1. Tokens that
    are not on the grid (a ViT's class token; the authors only run Swin) follow `outside`. The paper's 4.16 M on Swin-B
    is not what its code makes (3,667,456, as here).
    """

    bottleneck: int = Field(default=64, gt=0)
    """channels of the convolutions"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after the GELU"""
    outside: Outside = "bottleneck"
    """what class token, registers and prompts pass: the bottleneck without its convolutions, or nothing"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for place in (block.parts[name] for name in ("stream1", "stream2") if block.has(name)):
                place.require_grid()
                layer = MonaAdapter(block.dim, self.bottleneck, self.dropout, self.outside)
                if block is backbone.blocks[-1] and backbone.facts.pooling == "token":
                    layer.unread()
                yield place.after(layer)


class MonaAdapter(nn.Module):
    """x -> x + W_2 drop(GELU(convolutions(W_1 (g LN(x) + g_x x)))), for (B, n + H * W, D) or (B, H, W, D)."""

    wants_grid = True
    dormant: dict[str, str]

    def __init__(self, width: int, hidden: int, dropout: float, outside: Outside) -> None:
        super().__init__()
        self.outside, self.dormant = outside, {}
        self.norm = nn.LayerNorm(width)
        self.normed_gain = nn.Parameter(torch.full((width,), 1e-6))
        self.gain = nn.Parameter(torch.ones(width))
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, padding=size // 2, groups=hidden) for size in (3, 5, 7)
        )
        self.pointwise = nn.Conv2d(hidden, hidden, 1)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def unread(self) -> None:
        """Say that nothing behind this adapter reads the grid, so that what acts on the grid alone cannot learn."""
        reason = "in the last block nothing reads the patches: the class token is the feature"
        names = [name for name, _ in self.named_parameters() if self.outside == "skip" or "wise" in name]
        self.dormant = dict.fromkeys(names, reason)

    def forward(self, x: Tensor, *, grid: tuple[int, ...]) -> Tensor:
        z = self.down(self.norm(x) * self.normed_gain + x * self.gain)
        if x.dim() == 4:
            return x + self._back(self._convolve(z))
        batch, count, hidden = z.shape
        first = count - prod(grid)  # the frames of a clip are convolved one by one
        mapped = self._convolve(z[:, first:].reshape(-1, *grid[-2:], hidden)).reshape(batch, -1, hidden)
        if first == 0:
            return x + self._back(mapped)
        if self.outside == "skip":
            return torch.cat([x[:, :first], x[:, first:] + self._back(mapped)], dim=1)
        return x + self._back(torch.cat([z[:, :first], mapped], dim=1))

    def _convolve(self, z: Tensor) -> Tensor:
        """(B, H, W, h) -> the same shape."""
        z = z.permute(0, 3, 1, 2)
        z = z + sum(conv(z) for conv in self.depthwise) / 3
        z = z + self.pointwise(z)
        return z.permute(0, 2, 3, 1)

    def _back(self, z: Tensor) -> Tensor:
        out: Tensor = self.up(self.dropout(F.gelu(z)))
        return out
