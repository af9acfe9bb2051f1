"""MoSA: an adapter whose second map is split at random into parts that train in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..method import Method, register


@register("mosa", category="addition", family="adapter", paper="2312.02923", year=2023, venue="arXiv")
class MoSA(Method):
    """out = x + MLP(LN(x)) + s (W drop(GELU(W_down LN'(x) + b_down)) + b_up), LN' of its own, x (B, N, D).

    In training W is one of E sparse matrices, drawn anew at each pass: each entry of W_up belongs to one of them, at
    random. In evaluation they are merged: W_up / E (merge="add", the mean of the copies), or W_up ("joint").

    The authors store E copies of W_up that start equal and mask their gradients. As W_up starts at zero, copy e is W_up
    on its own entries and zero elsewhere, so one matrix and the owner of each entry are enough. Departures: b_up is one
    for all copies, and an optimiser's moments of entries that are not drawn decay (the copies' own stay as they were).
    This is the form with one W_down and the place of AdaptFormer; step 0 is the frozen model.
    """

    bottleneck: int = Field(default=64, gt=0)
    """R"""
    experts: int = Field(default=4, gt=0)
    """E"""
    merge: Literal["add", "joint"] = "add"
    """how the parts are put together for evaluation"""
    scale: float = 0.1
    """s, multiplies b_up too"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """behind the GELU"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            share = 1.0 / self.experts if self.merge == "add" else 1.0
            layer = SplitBottleneck(block.dim, self.bottleneck, self.experts, share, self.scale, self.dropout)
            yield block.mlp_branch.parallel(layer)


class SplitBottleneck(Bottleneck):
    """The bottleneck with a norm in front, whose W_up is cut into parts by `owner` (D, R)."""

    owner: Tensor

    def __init__(self, width: int, bottleneck: int, experts: int, share: float, scale: float, dropout: float) -> None:
        super().__init__(width, bottleneck, scale=scale, dropout=dropout, activation="gelu", layer_norm="in")
        self.experts, self.share = experts, share
        owner = torch.randperm(width * bottleneck).reshape(width, bottleneck) % experts
        self.register_buffer("owner", owner.to(torch.uint8))
        if experts > 1:
            why = "W_up starts at zero, and passes no gradient on before the same part is drawn twice"
            self.dormant = dict.fromkeys(("down.weight", "down.bias", "norm.weight", "norm.bias"), why)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(F.gelu(self.down(self.norm(x))))
        weight = self.up.weight * self.share
        if self.training:
            drawn = torch.randint(self.experts, (), device=self.owner.device)
            weight = self.up.weight * (self.owner == drawn)
        return F.linear(inner, weight, self.up.bias) * self.scale
