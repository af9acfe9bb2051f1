"""Res-Tuning-Bypass: a chain of small tuners beside the frozen blocks, whose end replaces the last feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..method import Method, register


@register("res_tuning_bypass", category="addition", family="side", paper="2310.19859", year=2023, venue="NeurIPS")
class ResTuningBypass(Method):
    """b_0 = x_0, b_l = s(a_l) H_l(x_l) + (1 - s(a_l)) V_l(b_{l-1}), and b_L enters the final norm in place of x_L.

    x_0 (B, N, D) is the embedding and x_l the output of block l; H and V are x + W_up GELU(W_down x + b_down) + b_up,
    W_down (R, D); s is the sigmoid, a_l a number from zero. Nothing is written back, so no gradient enters the frozen
    model. blend="sum" is the port in the authors' later library: b_l = H_l(x_l) + V_l(b_{l-1}), without a_l.

    Maps start Xavier-uniform with biases N(0, 1e-6), as in that port, so step 0 is not the frozen model. The official
    code was not read: the blend is the paper's from memory, and R = 10 is chosen for the published 0.42 M (it gives
    0.39 M). On stages of several widths the chain runs beside the last stage, and x_0 is what enters it; that is ours.
    """

    bottleneck: int = Field(default=10, gt=0)
    """R; 32 in the port"""
    blend: Literal["learnt", "sum"] = "learnt"
    """with a_l, or as a sum"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        last = backbone.blocks[-1]
        alike = [block for block in backbone.blocks if (block.dim, block.grid) == (last.dim, last.grid)]
        layer = Bypass(last.dim, self.bottleneck, len(alike), self.blend == "learnt")
        yield backbone.at_end(layer, reads=(alike[0].input, *alike))


class Bypass(nn.Module):
    """(x_L, x_0, x_1, ..., x_L) -> b_L, each (B, ..., D)."""

    def __init__(self, width: int, bottleneck: int, count: int, learnt: bool) -> None:
        super().__init__()
        tuners = [Bottleneck(width, bottleneck, activation="gelu", residual=True) for _ in range(2 * count)]
        self.across, self.along = nn.ModuleList(tuners[:count]), nn.ModuleList(tuners[count:])
        self.blend = nn.Parameter(torch.zeros(count)) if learnt else None
        for tuner in tuners:
            for linear in (tuner.down, tuner.up):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)

    def forward(self, last: Tensor, start: Tensor, *outputs: Tensor) -> Tensor:
        b = start.reshape(last.shape)
        for number, x in enumerate(outputs):
            across, along = self.across[number](x.reshape(last.shape)), self.along[number](b)
            if self.blend is None:
                b = across + along
            else:
                share = self.blend[number].sigmoid()
                b = share * across + (1 - share) * along
        return b
