"""VAPT: prompts that are functions of the image tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit, Lifetime
from ..backbones.points import MissingPlace
from ..layers.prompt import PromptTokens, xavier_bound
from ..method import Method, register


@register("vapt", category="addition", family="prompt", paper="2501.18936", year=2026, venue="ICLR")
class VAPT(Method):
    """VPT-Deep whose prompts, from the second block on, are computed from the tokens that enter the block.

    x^ = LN_i(x), x (H W, D) the tokens on their grid; X = drop(c_i * x^), one K x K kernel c_i for all channels,
    without padding; P_i = A_i X + a_i 1^T, A_i (n, (H-K+1)(W-K+1)) and a_i (n,) from zero (token-wise projectors);
    inserted is P_i + W_2 drop(ReLU(W_1 P_i)), W_1 (r, D), W_2 (D, r) without biases, one pair for all blocks (feature
    projector). The first block has n plain prompts of VPT. LN_i, c_i, A_i and a_i belong to block i.

    The released code is followed, whose c_i starts N(0, 1) and whose dropout of whole channels is 0.1. Extensions of
    ours: for images of other sizes A_i is stretched over the grid; on Swin each width has its own feature projector.
    """

    tokens: int = Field(default=10, gt=0)
    """n; as in the authors' example"""
    kernel: int = Field(default=2, gt=0)
    """K"""
    hidden: int = Field(default=8, gt=0)
    """r"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the plain prompts of the first block"""
    hidden_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """behind the ReLU"""
    channel_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """of whole channels of X"""
    pooled: bool = True
    """whether a mean over the tokens, where the backbone pools by one, includes the last block's prompts"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        lifetime: Lifetime = "pooled" if self.pooled else "span"
        projectors: dict[int, FeatureProjector] = {}
        for block in backbone.blocks:
            if block.index == 0:
                bound = xavier_bound(backbone, block.dim)
                yield block.insert_tokens(PromptTokens(self.tokens, block.dim, bound, self.dropout), lifetime)
                continue
            grid = block.cells
            if block.frames is not None or min(grid) < self.kernel:
                raise MissingPlace(
                    f"VAPT slides a kernel of {self.kernel} x {self.kernel} over the tokens of an image, and"
                    f" {block.name} has {'clips' if block.frames is not None else f'{grid[0]} x {grid[1]} tokens'}."
                )
            if block.dim not in projectors:
                projectors[block.dim] = FeatureProjector(block.dim, self.hidden, self.hidden_dropout)
            layer = AdaptiveTokens(
                self.tokens, block.dim, grid, self.kernel, self.channel_dropout, projectors[block.dim]
            )
            yield block.insert_tokens(layer, lifetime)


class FeatureProjector(nn.Module):
    """p -> p + W_2 drop(ReLU(W_1 p)), starting as PyTorch's linear maps do; several blocks share it."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, p: Tensor) -> Tensor:
        out: Tensor = self.up(self.dropout(self.down(p).relu()))
        return p + out


class AdaptiveTokens(nn.Module):
    """h (B, P + H W, D) or (B, H, W, D) -> n tokens (B, n, D) that depend on it."""

    wants_grid = True

    def __init__(
        self, count: int, width: int, grid: tuple[int, int], kernel: int, dropout: float, project: FeatureProjector
    ) -> None:
        super().__init__()
        self.norm, self.kernel = nn.LayerNorm(width), nn.Parameter(torch.randn(kernel, kernel))
        self.weight = nn.Parameter(torch.zeros(count, *(side - kernel + 1 for side in grid)))
        self.bias = nn.Parameter(torch.zeros(count))
        self.dropout, self.project = nn.Dropout2d(dropout), project

    def forward(self, hidden: Tensor, *, grid: tuple[int, ...]) -> Tensor:
        rows = hidden.flatten(1, -2)[:, -math.prod(grid) :]
        maps = self.norm(rows).mT.reshape(-1, 1, *grid)  # each channel of each image by itself
        slid = F.conv2d(maps, self.kernel[None, None])
        x = self.dropout(slid.reshape(len(rows), -1, *slid.shape[-2:]))
        weight, size = self.weight, x.shape[-2:]
        if weight.shape[1:] != size:
            share = weight[0].numel() / math.prod(size)  # the sum over the grid keeps its size
            weight = F.interpolate(weight[None], size=size, mode="bilinear", align_corners=False)[0] * share
        tokens = torch.einsum("bdhw,nhw->bnd", x, weight) + self.bias[:, None]
        out: Tensor = self.project(tokens)
        return out
