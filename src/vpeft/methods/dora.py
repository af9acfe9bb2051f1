"""DoRA: a low-rank update of the direction of each weight row, and a trained length."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightChange
from ..method import register
from .lora import OnProjections


class Direction(WeightChange):
    """W -> m V / |V|, V = W + s B A, |V| the norm of each row, through which no gradient flows."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rank, rows.shape[1]), a=math.sqrt(5)))
        self.B = nn.Parameter(torch.zeros(len(rows), rank))
        self.magnitude = nn.Parameter(rows.norm(dim=1))
        self.scale = scale

    def changed(self, weight: Tensor) -> Tensor:
        moved = weight + self.scale * self.B @ self.A
        # a row of zeros has no direction; it stays zero
        length = moved.detach().norm(dim=1).clamp_min(torch.finfo(moved.dtype).tiny)
        changed: Tensor = (self.magnitude / length)[:, None] * moved
        return changed


@register("dora", family="reparameter", paper="2402.09353", year=2024, venue="ICML")
class DoRA(OnProjections):
    """Each row of a weight is a length times a direction; the length trains, and the direction moves by a low rank.

    W' = m V / |V|, V = W + s B A, with A (R, D_in), B (D_out, R), s = alpha / R, m (D_out,), |V| the norm of each row
    over its inputs. m starts at |W| and B at zero, so step 0 is the frozen model up to rounding. As in the paper |V|
    counts as a constant in the gradient. It folds into W; the bias is not scaled.

    The paper writes W as (in, out) and says column-wise; here that is a row. A convolution has one row for each filter.
    The dropout of A's input is left out, as the change is made at the weight.
    """

    rank: int = Field(default=8, gt=0)
    """R"""
    alpha: float | None = None
    """numerator of the scale alpha / R; None means R, so that s = 1"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for place in self.places(backbone):
            yield place.reparametrize(Direction(place.weight, self.rank, scale))
