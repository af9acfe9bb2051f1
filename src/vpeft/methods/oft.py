"""OFT: a block-diagonal rotation of each weight's inputs."""

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


class BlockRotation(WeightChange):
    """W -> W diag(R_1^T, R_2^T, ...), R_i (b, b) from the b (b - 1) / 2 numbers above the diagonal of Q_i."""

    def __init__(self, width_in: int, block: int, shared: bool, terms: int | None) -> None:
        super().__init__()
        self.block, self.terms = block, terms
        self.upper = nn.Parameter(torch.zeros(1 if shared else width_in // block, block * (block - 1) // 2))

    def changed(self, weight: Tensor) -> Tensor:
        row, column = torch.triu_indices(self.block, self.block, 1, device=self.upper.device)
        place = (torch.arange(len(self.upper), device=self.upper.device)[:, None], row, column)
        half = self.upper.new_zeros(len(self.upper), self.block, self.block).index_put(place, self.upper)
        rotation = cayley(half - half.transpose(1, 2), self.terms)
        blocks = weight.reshape(len(weight), -1, self.block)
        rotation = rotation.expand(blocks.shape[1], -1, -1)
        return torch.einsum("onc,nkc->onk", blocks, rotation).reshape(weight.shape)


@register("oft", family="reparameter", paper="2306.07280", year=2023, venue="NeurIPS")
class OFT(OnProjections):
    """The inputs of each weight are rotated in blocks, which keeps the angles between its neurons.

    y = W R^T x + b, R block-diagonal with R_i = (I + Q_i) (I - Q_i)^-1 (b, b), Q_i skew-symmetric with b (b - 1) / 2
    free numbers. Q starts at zero, so step 0 is the frozen model. It folds into W.

    b is the largest divisor of the inputs that is at most `block`. `terms` replaces the inverse by a series, peft's
    default with 5; its exact form is (I - Q) (I + Q)^-1, the same with the other sign of Q. A convolution is a matrix
    (out, in k k), as peft merges it. The constrained form (COFT) and the dropout of blocks are left out.
    """

    block: int = Field(default=32, gt=1)
    """b at most"""
    shared: bool = False
    """one R_i for all blocks of a layer"""
    terms: int | None = Field(default=None, gt=1, le=1000)
    """terms of the series; None for the exact inverse (the paper)"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in self.places(backbone):
            width_in = place.weight[0].numel()
            if (block := divisor(width_in, self.block)) > 1:  # one number has nothing to rotate with
                yield place.reparametrize(BlockRotation(width_in, block, self.shared, self.terms))
