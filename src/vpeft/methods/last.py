"""LAST: low-rank attention modules on the side, whose own part alone is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import BadField, Method, register


@register("last", category="addition", family="side", paper="2402.04009", year=2024, venue="arXiv")
class LAST(Method):
    """A side stack of low-rank self-attention without MLPs reads the frozen block outputs and corrects the last one.

    The blocks are cut into m groups of g; z_0 is the embedding, z_i (B, N, D) the output of group i.
    f(X) = X + softmax(Q K^T / sqrt(d)) V A_O with Q, K, V = LN(X) A_Q, LN(X) A_K, LN(X) A_V, A (D, R), A_O (R, D),
    d = R / heads; F_i is T such modules in a row. u_0 = 0, u_i = F_i(u_{i-1} + z_{i-1}); what has been learnt is
    u_m - (z_0 + ... + z_{m-1}), and z_m plus that enters the frozen final norm. A_O starts at zero, so step 0 is the
    frozen model. The learnt part is summed by itself, which is the same without the cancellation of large sums.

    No code is public. Not verified against the authors: A_O = 0 at the start, that z_m is added back (`output`), the
    number of modules (13 with R = 16 would be the published 0.66 M), the heads, and the scale of the softmax.
    """

    rank: int = Field(default=16, gt=0)
    """R"""
    gap: int = Field(default=1, gt=0)
    """g, blocks in a group; a last group may be smaller"""
    modules: int = Field(default=1, gt=0)
    """T"""
    heads: int = Field(default=1, gt=0)
    """must divide R"""
    scale: Literal["head", "rank"] = "head"
    """softmax over sqrt(R / heads) or over sqrt(R)"""
    output: Literal["residual", "difference"] = "residual"
    """z_m plus the learnt part, or the learnt part alone"""

    @property
    def starts_as_identity(self) -> bool:
        return self.output == "residual"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.rank % self.heads:
            raise BadField(f"LAST splits the rank over its heads, but {self.heads} heads do not divide {self.rank}.")
        first = backbone.blocks[0]
        for read in (*backbone.blocks, backbone.embedding):
            if (read.width, read.grid) != (first.dim, first.grid):
                raise MissingPlace(
                    f"LAST adds the tokens of all blocks, so it needs one width and one grid; {read.name} of"
                    f" {backbone.facts.architecture} has {read.width} channels on {read.grid}, {first.name} has"
                    f" {first.dim} on {first.grid}."
                )
        ends = backbone.blocks[self.gap - 1 : -1 : self.gap]
        width = (self.rank // self.heads) if self.scale == "head" else self.rank
        side = LearntPart(first.dim, self.rank, self.heads, width**-0.5, 1 + len(ends), self.modules)
        if self.output == "difference":
            side.keep = 0.0
        yield backbone.at_end(side, reads=(backbone.embedding, *ends))


class LowRankAttention(nn.Module):
    """X -> softmax(Q K^T scale) V A_O of LN(X), without the residual; (B, ..., D), attention over all tokens."""

    def __init__(self, width: int, rank: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.q, self.k, self.v = (nn.Linear(width, rank, bias=False) for _ in range(3))
        self.o = nn.Linear(rank, width, bias=False)
        for linear in (self.q, self.k, self.v):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        nn.init.zeros_(self.o.weight)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(1, -2)
        shape = (*tokens.shape[:2], self.heads, -1)
        q, k, v = (layer(tokens).reshape(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        return torch.as_tensor(self.o(mixed)).reshape(x.shape)


class LearntPart(nn.Module):
    """(z_m, z_0, ..., z_{m-1}) -> keep * z_m + what the modules learnt."""

    def __init__(self, width: int, rank: int, heads: int, scale: float, groups: int, modules: int) -> None:
        super().__init__()
        self.keep = 1.0
        self.groups = nn.ModuleList(
            nn.ModuleList(LowRankAttention(width, rank, heads, scale) for _ in range(modules)) for _ in range(groups)
        )

    def forward(self, last: Tensor, *states: Tensor) -> Tensor:
        gathered, learnt = torch.zeros_like(last), torch.zeros_like(last)
        for group, state in zip(self.groups, states, strict=True):
            gathered = gathered + state
            assert isinstance(group, nn.ModuleList)
            for module in group:
                learnt = learnt + module(gathered + learnt)
        return self.keep * last + learnt
