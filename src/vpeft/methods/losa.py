"""LoSA: low-rank mixers on the side refine the last frozen feature, reading one block at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..errors import VpeftError
from ..method import Method, register


@register("losa", category="addition", family="side", paper="2402.02887", year=2024, venue="CVPR")
class LoSA(Method):
    """y_0 = b_L; y_i = y_{i-1} + g_i(b_i + y_{i-1}) for i = 1..L; y_L enters the final norm. b_i (N, D) leaves block i.

    g is a low-rank mixer of channels, u -> W_u GELU(W_d u + a) + c with W_d (R, D), and, where `token_rank` is given,
    behind it the same on the transpose, over tokens: W_d (R_t, N). Nothing trained lies in the backbone's own path, so
    no gradient enters it and all b_i can be stored. W_u and c start at zero: step 0 is the frozen model.

    No code is public. Not verified against the authors: that the mixers follow each other within g (they may alternate
    between blocks), that token mixing takes the channels' result with its residual, the zero start, and biases. Token
    mixing ties the adapter to one image size.
    """

    rank: int = Field(default=8, gt=0)
    """R; 1 to 64 in the paper"""
    token_rank: int | None = Field(default=None, gt=0)
    """R_t; None is without token mixing"""
    every: int = Field(default=1, gt=0)
    """read every so many blocks, the last always"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        last = backbone.blocks[-1]
        read = [block for block in backbone.blocks if (last.index - block.index) % self.every == 0]
        for block in read:
            if (block.dim, block.grid) != (last.dim, last.grid):
                raise MissingPlace(
                    f"LoSA adds the outputs of all blocks, so it needs one width and one grid; {block.name} of"
                    f" {backbone.facts.architecture} has {block.dim} channels on {block.grid}, {last.name} has"
                    f" {last.dim} on {last.grid}. Give `every` so that only blocks of the last stage are read."
                )
        count = None
        if self.token_rank is not None:
            rows, columns = last.cells
            count = rows * columns + (last.prefix if last.layout is Layout.TOKENS else 0)
        yield backbone.at_end(SideChain(last.dim, self.rank, count, self.token_rank, len(read)), reads=tuple(read))


class LowRankMixer(nn.Module):
    """u (..., D) -> W_u GELU(W_d u + a) + c."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, u: Tensor) -> Tensor:
        out: Tensor = self.up(F.gelu(self.down(u)))
        return out


class SideChain(nn.Module):
    """(b_L, b_1, ..., b_L) -> y_L, all (B, ..., D)."""

    def __init__(self, width: int, rank: int, count: int | None, token_rank: int | None, steps: int) -> None:
        super().__init__()
        self.count = count
        self.channels = nn.ModuleList(LowRankMixer(width, rank) for _ in range(steps))
        mixed = steps if count is not None and token_rank is not None else 0
        self.tokens = nn.ModuleList(LowRankMixer(count or 1, token_rank or 1) for _ in range(mixed))

    def forward(self, last: Tensor, *outputs: Tensor) -> Tensor:
        y = last.flatten(1, -2)
        if self.count not in (None, y.shape[1]):
            raise VpeftError(f"LoSA's token mixers were made for {self.count} tokens and meet {y.shape[1]}.")
        for step, (mixer, came) in enumerate(zip(self.channels, outputs, strict=True)):
            u = came.flatten(1, -2) + y
            change = mixer(u)
            if self.tokens:
                change = change + torch.as_tensor(self.tokens[step]((u + change).mT)).mT
            y = y + change
        return y.reshape(last.shape)
