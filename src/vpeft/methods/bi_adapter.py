"""Binary adapters: a wide adapter whose weights are trained through a quantiser of one bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("bi_adapter", category="addition", family="adapter", paper="2307.16867", year=2023, venue="ICCV")
class BiAdapter(Method):
    """AdaptFormer or LoRA without biases, with Q(w) in place of each weight matrix w; b bits an entry.

    Q(w) = v' sigma + m with m and sigma the mean and standard deviation of w, v = (w - m) / (sigma + 1e-5), v' the
    nearest of 2^b levels; its gradient is that of v (straight through), m and sigma included.
    adaptformer: out = x + MLP(LN(x)) + s Q(W_u) drop(ReLU(Q(W_d) x)), x before the norm, W_d (R, D), W_u (D, R).
    lora: q and v gain s Q(B) drop(Q(A) x), x what attention reads; this one folds into the weights.

    W_u starts N(0, 0.001) cut at 0.002, as a matrix of zeros has no deviation: step 0 is not exactly the frozen model;
    with 32 bits (no quantiser) it starts at zero. A file of an adapter holds w in full precision; the packing to b bits
    is not part of this, nor is the authors' classifier in one bit.
    """

    form: Literal["adaptformer", "lora"] = "adaptformer"
    """what is quantised"""
    bits: Literal[1, 2, 4, 8, 32] = 1
    """b; 32 is without quantiser"""
    bottleneck: int = Field(default=32, gt=0)
    """R"""
    scale: float = 1.0
    """s; the authors choose it by task from 0.01, 0.1, 1, 10, 100"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """between the two maps"""

    @property
    def starts_as_identity(self) -> bool:
        return self.bits == 32

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.form == "lora":
            backbone.require("attn.q", "attn.v")
        for block in backbone.blocks:
            places = (block.attn.q, block.attn.v) if self.form == "lora" else (block.mlp_branch,)
            for place in places:
                width_in = place.width_in if self.form == "lora" else block.dim
                kind = QuantisedLowRank if self.form == "lora" else QuantisedPair
                yield place.parallel(kind(width_in, place.width, self.bottleneck, self.bits, self.scale, self.dropout))


@cache
def levels(bits: int) -> tuple[float, ...]:
    """The 2^b levels of a standard normal variable: each the conditional median between the mid-points around it."""
    found = torch.special.ndtri((torch.arange(2**bits, dtype=torch.float64, device="cpu") + 0.5) / 2**bits)
    for _ in range(500):
        middle = torch.special.ndtr((found[1:] + found[:-1]) / 2)
        edges = torch.cat([middle.new_zeros(1), middle, middle.new_ones(1)])
        found = torch.special.ndtri((edges[1:] + edges[:-1]) / 2)
    return tuple(found.tolist())


def quantised(weight: Tensor, table: tuple[float, ...]) -> Tensor:
    """Q(w) to the levels of `table`, with the gradient of w behind the rounding; w itself where there are none."""
    if not table:
        return weight
    mean, deviation = weight.mean(), weight.std()
    v = (weight - mean) / (deviation + 1e-5)
    level = torch.tensor(table, dtype=v.dtype, device=v.device)
    with torch.no_grad():
        step = level[torch.bucketize(v, (level[1:] + level[:-1]) / 2)] - v
    return (v + step) * deviation + mean


class QuantisedPair(nn.Module):
    """x (..., in) -> s Q(W_u) drop(ReLU(Q(W_d) x))."""

    def __init__(self, width_in: int, width: int, bottleneck: int, bits: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(bottleneck, width_in))
        self.up = nn.Parameter(torch.zeros(width, bottleneck))
        self.levels = () if bits == 32 else levels(bits)  # here, as a compiled pass cannot look into a cache
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        if bits != 32:
            nn.init.trunc_normal_(self.up, std=1e-3, a=-2e-3, b=2e-3)

    def activate(self, inner: Tensor) -> Tensor:
        """What stands between the two maps."""
        return F.relu(inner)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activate(F.linear(x, quantised(self.down, self.levels)))
        return F.linear(self.dropout(inner), quantised(self.up, self.levels)) * self.scale


class QuantisedLowRank(QuantisedPair):
    """x (..., in) -> s Q(B) drop(Q(A) x)."""

    def activate(self, inner: Tensor) -> Tensor:
        return inner

    def weight_delta(self) -> tuple[Tensor, None]:
        """What to add to the weight (out, in)."""
        return self.scale * quantised(self.up, self.levels) @ quantised(self.down, self.levels), None
