"""VFM-Adapter: a convolutional bypass whose kernel a shared network makes from each image."""

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
from ..backbones.points import MissingPlace
from ..layers.bottleneck import quick_gelu
from ..method import Method, register


@register("vfm_adapter", category="addition", family="adapter", paper="AAAI 2025", year=2025, venue="AAAI")
class VFMAdapter(Method):
    """Convpass with a kernel of its own for each image, made from a description that attends to the whole image.

    s (W_u drop(q(C q(W_d x + b_d))) + b_u) beside attention and MLP, x (B, N, D) what they read behind their norm, q
    QuickGELU, W_d (h, D). p = M_2 ReLU(M_1 x), (B, N, z); k description tokens m_j (z) for the whole model;
    a_j = softmax over the N cells of p m_j; d = sum_j sum_n a_j[n] p[n]. C = K_1 (K_2 d) is a kernel (h, h, 3, 3), K_2
    (h L, z) and K_1 (9 h, L), one pair for all attentions and one for all MLPs. W_u starts at zero, so step 0 is the
    frozen model.

    The paper has no public code; these equations are those of an author's working repository (yuzeng0-0/adapter,
    `hypernet_convpass_mask`), one of several variants there. Not verified: that the paper's is this one, and h and k
    (here chosen so that SAM-B trains three percent, as published). The class token meets the kernel's centre.
    """

    variants = ({"sites": ("mlp",)},)

    sites: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """where a bypass stands"""
    hidden: int = Field(default=32, gt=0)
    """h"""
    tokens: int = Field(default=4, gt=0)
    """k"""
    description: int = Field(default=64, gt=0)
    """z"""
    low: int = Field(default=8, gt=0)
    """L"""
    scale: float = 1.0
    """s"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """before W_u"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require(*self.sites)
        tokens = nn.Embedding(self.tokens, self.description)
        makers = {site: KernelMaker(self.description, self.low, self.hidden) for site in self.sites}
        for block in backbone.blocks:
            for site in self.sites:
                norm, branch = (block.norm1, block.attn_branch) if site == "attn" else (block.norm2, block.mlp_branch)
                if norm.grid is None:
                    raise MissingPlace(f"{norm.name} has no grid, and VFM-Adapter convolves over one.")
                layer = DescribedBypass(block.dim, makers[site], tokens, self.scale, self.dropout)
                yield branch.parallel(layer, reads=(norm,))


class KernelMaker(nn.Module):
    """d (B, z) -> kernels (B, h, h, 3, 3)."""

    def __init__(self, description: int, low: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.low = hidden, low
        self.first, self.second = nn.Linear(description, hidden * low), nn.Linear(low, hidden * 9)
        for linear in (self.first, self.second):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, description: Tensor) -> Tensor:
        rows = self.first(description).unflatten(-1, (self.hidden, self.low))
        out: Tensor = self.second(rows).unflatten(-1, (self.hidden, 3, 3))
        return out


class DescribedBypass(nn.Module):
    """x (B, P + H W, D) or (B, H, W, D) -> the same shape."""

    wants_grid = True

    def __init__(self, width: int, maker: KernelMaker, tokens: nn.Embedding, scale: float, dropout: float) -> None:
        super().__init__()
        self.maker, self.tokens, self.scale = maker, tokens, scale
        size = tokens.embedding_dim
        self.describe = nn.Sequential(nn.Linear(width, size), nn.ReLU(), nn.Linear(size, size))
        self.down, self.up = nn.Linear(width, maker.hidden), nn.Linear(maker.hidden, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor, *, grid: tuple[int, ...]) -> Tensor:
        rows = x.flatten(1, -2)
        first = rows.shape[1] - prod(grid)
        p = self.describe(rows[:, first:])
        shares = (p @ self.tokens.weight.T.to(p.dtype)).softmax(dim=1).sum(dim=-1, keepdim=True)
        kernels = self.maker((shares * p).sum(dim=1))
        inner = quick_gelu(self.down(rows))
        mixed = quick_gelu(
            torch.cat([self._centre(inner[:, :first], kernels), self._map(inner[:, first:], kernels, grid)], 1)
        )
        out: Tensor = self.up(self.dropout(mixed)) * self.scale
        return out.reshape(x.shape)

    @staticmethod
    def _centre(tokens: Tensor, kernels: Tensor) -> Tensor:
        return tokens @ kernels[..., 1, 1].mT.to(tokens.dtype)

    @staticmethod
    def _map(cells: Tensor, kernels: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, T H W, h) -> the same shape, each image (each frame of a clip) with its own kernel."""
        batch, _, width = cells.shape
        frames = cells.reshape(batch, -1, *grid[-2:], width).permute(1, 0, 4, 2, 3)  # T, B, h, H, W
        maps = frames.reshape(len(frames), batch * width, *grid[-2:])
        out = F.conv2d(maps, kernels.flatten(0, 1).to(maps.dtype), padding=1, groups=batch)
        return out.reshape(frames.shape).permute(1, 0, 3, 4, 2).reshape(cells.shape)
