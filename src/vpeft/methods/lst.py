"""LST: a narrow copy of the transformer beside the frozen one, fed by ladders."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..layers.pooling import pool, side_pooling
from ..layers.side_block import SideBlock, prune
from .method import BadField, Method
from .registry import register

PRUNED = ("q", "k", "v", "proj", "fc1", "fc2")


@register("lst", category="addition", family="side", paper="2206.06522", year=2022, venue="NeurIPS")
class LST(Method):
    """A side transformer of width s = D / r reads every frozen block and alone makes the feature.

    h_0 = W_0 b_0 + c_0; for each kept block i: g_i = sigmoid(a_i / T), u_i = g_i h_{i-1} + (1 - g_i)(W_i b_i + c_i),
    h_i = SideBlock_i(u_i); y = W_up pool(LN(h_L)) + c_up. b_0 (B, N, D) is the embedding, b_i the output of block i,
    W_i (s, D). Nothing is written back, so no gradient enters the frozen model. y (B, D) replaces the pooled feature;
    the side's tokens are pooled as the backbone pools its own (pooling and W_up commute).

    Departures: the published code is for T5; this ViT form is the one whose count (2.38 M on ViT-B/16) papers quote.
    Side blocks start at random (the paper prunes the frozen weights by Fisher importance; `init="magnitude"` prunes by
    squared weight, which needs no data). Stages of several widths, which the paper does not treat: the side is averaged
    over cells and mapped to the next width where the backbone's grid shrinks.
    """

    reduction: int = Field(default=8, gt=0)
    """r; D / r is the side's width"""
    temperature: float = Field(default=0.1, gt=0.0)
    """T"""
    gate: Literal["learnable", "none"] = "learnable"
    """"none" adds the ladder without weights: u = h + W b + c"""
    gate_start: float = 0.0
    """a_i at the start (`gate_alpha`)"""
    keep: tuple[int, ...] | None = None
    """blocks that have a side block; None for all (layer dropping)"""
    bias: bool = True
    """c_i of the ladders"""
    gate_after: bool = False
    """mix behind the side block instead of before it (`add_residual_after`)"""
    merge_last: bool = False
    """y <- g y + (1 - g) times the frozen feature, which has passed its final norm"""
    init: Literal["random", "magnitude"] = "random"
    """of the side blocks; "magnitude" keeps the rows and columns of the frozen block with the largest squared sum"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        kept = [block for block in backbone.blocks if self.keep is None or block.index in self.keep]
        if len(kept) != len(set(self.keep or kept)) or not kept:
            raise BadField(f"LST.keep = {self.keep} does not fit: the blocks are 0 to {len(backbone.blocks) - 1}.")
        if self.init == "magnitude":
            backbone.require("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
        how = side_pooling(backbone.facts.pooling, backbone.facts.prefix_tokens)
        yield backbone.outlet.after(Ladder(self, backbone, kept, how), reads=(backbone.embedding, *kept))


class Ladder(nn.Module):
    """(frozen feature (B, D), b_0, b_1, ...) -> y (B, D)."""

    def __init__(self, method: LST, backbone: Backbone, kept: list[Block], how: Literal["token", "mean"]) -> None:
        super().__init__()
        self.how, self.prefix, self.temperature = how, backbone.facts.prefix_tokens, method.temperature
        self.learnable, self.gate_after = method.gate == "learnable", method.gate_after
        source = [backbone.embedding.width, *(block.dim for block in kept)]
        widths = [max(1, width // method.reduction) for width in source]
        self.ladders = nn.ModuleList(nn.Linear(a, s, bias=method.bias) for a, s in zip(source, widths, strict=True))
        self.blocks = nn.ModuleList(SideBlock(s, _heads(block)) for s, block in zip(widths[1:], kept, strict=True))
        grids = [backbone.embedding.grid, *(block.grid for block in kept)]
        self.shrink = [a[0] // b[0] if a and b else 1 for a, b in pairwise(grids)]
        self.bridges = nn.ModuleList(nn.Linear(a, b) if a != b else nn.Identity() for a, b in pairwise(widths))
        gates = len(kept) if self.learnable else 0
        self.gates = nn.ParameterList(nn.Parameter(torch.full((1,), method.gate_start)) for _ in range(gates))
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.up = nn.Linear(widths[-1], backbone.facts.width)
        self.last = nn.Parameter(torch.full((1,), method.gate_start)) if method.merge_last else None
        if method.init == "magnitude":
            weights = [{name: block.projection(name).weight for name in PRUNED} for block in kept]
            prune(list(self.blocks), weights, [_heads(block) for block in kept])

    def forward(self, feature: Tensor, *values: Tensor) -> Tensor:
        h: Tensor = self.ladders[0](values[0])
        for i, block in enumerate(self.blocks):
            if self.shrink[i] > 1:  # (B, H, W, s): the mean over each cell, an odd last row or column by itself
                h = F.avg_pool2d(h.permute(0, 3, 1, 2), self.shrink[i], ceil_mode=True).permute(0, 2, 3, 1)
            h, rung = self.bridges[i](h), self.ladders[i + 1](values[i + 1])
            h = self._mix(i, block(h), rung) if self.gate_after else block(self._mix(i, h, rung))
        token = self.how == "token"  # the norm acts on each token, so a class token can be taken before it
        y: Tensor = self.up(self.norm(pool(h, "token")) if token else pool(self.norm(h), "mean", self.prefix))
        if self.last is None:
            return y
        g = torch.sigmoid(self.last / self.temperature)
        return g * y + (1 - g) * feature

    def _mix(self, i: int, side: Tensor, rung: Tensor) -> Tensor:
        if not self.learnable:
            return side + rung
        g = torch.sigmoid(self.gates[i] / self.temperature)
        return g * side + (1 - g) * rung


def _heads(block: Block) -> int:
    return block.attn.core.heads if block.has("attn.core") else 1
