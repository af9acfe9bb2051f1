"""BOFT: a rotation of each weight's inputs as a product of sparse rotations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.cayley import cayley
from ..layers.weight_change import WeightChange, divisor
from ..method import register
from .lora import OnProjections


class Butterfly(WeightChange):
    """W -> diag(s) W R^T, R = R_m ... R_1, each R_i orthogonal, block-diagonal up to a permutation of the inputs.

    Q (m, D_in / b, b, b) holds a matrix for each block, of which the skew-symmetric part counts.
    """

    order: Tensor

    def __init__(self, width_in: int, width: int, block: int, factors: int) -> None:
        super().__init__()
        self.Q = nn.Parameter(torch.zeros(factors, width_in // block, block, block))
        self.s = nn.Parameter(torch.ones(width, 1))
        self.register_buffer("order", torch.stack([_order(width_in, block, i, factors) for i in range(factors)]).int())

    def changed(self, weight: Tensor) -> Tensor:
        rotations = cayley(0.5 * (self.Q.transpose(-2, -1) - self.Q))
        for rotation, order in zip(rotations, self.order.long(), strict=True):
            # P D P^T: read in the order, rotate in blocks, put back
            blocks = weight[:, order.argsort()].reshape(len(weight), *rotation.shape[:2])
            weight = torch.einsum("onc,nkc->onk", blocks, rotation).flatten(1)[:, order]
        return self.s * weight


def _order(width: int, block: int, level: int, factors: int) -> Tensor:
    """Order of the inputs at a level: in each group of 2^level blocks, the half-blocks at even places come first."""
    if factors == 1:
        return torch.arange(width)
    places = torch.arange(width).reshape(-1, block * 2**level // max(block // 2, 1), max(block // 2, 1))
    return torch.cat([places[:, 0::2], places[:, 1::2]], dim=1).flatten()


@register("boft", family="reparameter", paper="2311.06243", year=2024, venue="ICLR")
class BOFT(OnProjections):
    """The inputs of each weight pass a product of sparse rotations, butterfly-like, so that few numbers mix all inputs.

    W' = diag(s) W R^T, R = R_m ... R_1, R_i = P_i diag(blocks) P_i^T, blocks (I - Q) (I + Q)^-1 of b x b with Q the
    skew-symmetric part of a trained matrix. Q starts at zero and s at one, so step 0 is the frozen model; the bias is
    not scaled. It folds into W. m b D_in + D_out numbers are stored as peft does, half of which are free.

    b is the largest divisor of the inputs that is at most `block`; with `factors` above one it is even, and where
    2^(factors - 1) blocks do not divide the inputs, a layer has as many factors as fit. Dropout of blocks is left out.
    """

    block: int = Field(default=4, gt=1)
    """b at most"""
    factors: int = Field(default=1, gt=0, le=32)
    """m"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in self.places(backbone):
            width_in, width = place.weight[0].numel(), len(place.weight)
            if (block := divisor(width_in, self.block)) == 1:
                continue
            factors = self.factors if block % 2 == 0 else 1
            while factors > 1 and width_in % (block * 2 ** (factors - 1)):
                factors -= 1
            yield place.reparametrize(Butterfly(width_in, width, block, factors))
