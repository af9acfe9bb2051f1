"""SNELL: sparse updates that a kernel makes of two low-rank matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register
from .ssl import Target

SIGNS = (0.1, -0.1)  # c of the released kernel
LARGEST = 2**24  # entries that torch.quantile takes


@register("snell", category="partial", family="reparameter", paper="2411.01800", year=2024, venue="NeurIPS")
class SNELL(Method):
    """W' = W + sparse(dW), dW[o, i] = sum_h c_h |p_h[o] - q_h[i]|, h = 1, 2, c = (0.1, -0.1), p and q of R / 2 numbers.

    sparse keeps what exceeds t, the quantile `sparsity` of |dW| over the matrix: dW |dW| there, the second factor
    without gradient (released), or dW max(|dW| - t, 0) (paper). With sparsity 0 it is dW itself. It folds into W.

    p (2, out, R / 2) and q (2, in, R / 2) start uniform within 1 / sqrt(R / 2 * out) and 1 / sqrt(R / 2 * in): step 0
    is not exactly the frozen model. Departures: the released code drops part of x before dW in q, k and v, and the
    branch as a whole, and trains the class token; here dW is made once for a pass and kept for the backward pass. On a
    convolution the matrix is (out, in * kernel).
    """

    variants = ({"targets": ("conv", "fc1", "fc2")},)

    rank: int = Field(default=8, gt=1, multiple_of=2)
    """R; 8, 16 or 32"""
    sparsity: float = Field(default=0.9, ge=0.0, lt=1.0)
    """share of zeros; the authors choose it by task, 0 to 0.995"""
    threshold: Literal["released", "paper"] = "released"
    """what is done with the entries above t"""
    targets: tuple[Target, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
    """projections of each block"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for place in (place for target in self.targets for place in block.stored(target)):
                shape = tuple(place.weight.shape)
                yield place.reparametrize(KernelWeight(shape, self.rank, self.sparsity, self.threshold == "paper"))


class KernelWeight(nn.Module):
    """W (out, ...) -> W + sparse(dW), with dW from distances between rows and columns."""

    def __init__(self, shape: tuple[int, ...], rank: int, sparsity: float, soft: bool) -> None:
        super().__init__()
        self.sparsity, self.soft = sparsity, soft
        self.outputs = nn.Parameter(torch.empty(2, shape[0], rank // 2))
        self.inputs = nn.Parameter(torch.empty(2, math.prod(shape[1:]), rank // 2))
        for factors in (self.outputs, self.inputs):
            nn.init.kaiming_uniform_(factors, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.delta().reshape(weight.shape).to(weight.dtype)

    def delta(self) -> Tensor:
        """The sparse change (out, in)."""
        first, second = (_distances(p, q) for p, q in zip(self.outputs, self.inputs, strict=True))
        dense = SIGNS[0] * first + SIGNS[1] * second
        if self.sparsity == 0:
            return dense
        size = dense.detach().abs()
        limit = _quantile(size.flatten(), self.sparsity)
        if self.soft:
            return dense * (dense.abs() - limit).clamp(min=0)
        return dense * (size > limit) * size


def _distances(p: Tensor, q: Tensor) -> Tensor:
    """(out, in): the Euclidean distances; where two rows coincide the gradient is zero."""
    return torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist")


def _quantile(values: Tensor, share: float) -> Tensor:
    if values.numel() <= LARGEST:
        return values.quantile(share)
    return values.kthvalue(max(1, math.ceil(share * values.numel()))).values
