"""LoHa: the elementwise product of two low-rank updates."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightDelta
from ..method import register
from .lora import OnProjections


class Hadamard(WeightDelta):
    """dW = s (B1 A1) * (B2 A2), elementwise; A2 starts at zero, the others Kaiming-uniform."""

    def __init__(self, width_in: int, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A1, self.A2 = nn.Parameter(torch.empty(rank, width_in)), nn.Parameter(torch.zeros(rank, width_in))
        self.B1, self.B2 = nn.Parameter(torch.empty(width, rank)), nn.Parameter(torch.empty(width, rank))
        for tensor in (self.A1, self.B1, self.B2):
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        self.scale = scale

    def delta(self) -> Tensor:
        return self.scale * (self.B1 @ self.A1) * (self.B2 @ self.A2)


@register("loha", family="reparameter", paper="2108.06098", year=2022, venue="ICLR")
class LoHa(OnProjections):
    """Two low-rank updates are multiplied elementwise, so that 2 R (D_in + D_out) numbers reach a rank of R^2.

    W' = W + s (B1 A1) * (B2 A2), A (R, D_in), B (D_out, R), s = alpha / R. A2 starts at zero, so step 0 is the frozen
    model. It folds into W. The product is FedPara's; the name and the use beside a frozen weight are LyCORIS's.

    A convolution is changed as a matrix (out, in k k), FedPara's first form; its Tucker form is left out, and the
    dropouts of LyCORIS.
    """

    rank: int = Field(default=8, gt=0)
    """R of each of the two"""
    alpha: float | None = None
    """numerator of the scale alpha / R; None means R, so that s = 1"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for place in self.places(backbone):
            width, width_in = place.weight.flatten(1).shape
            yield place.reparametrize(Hadamard(width_in, width, self.rank, scale))
