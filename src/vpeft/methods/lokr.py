"""LoKr: a Kronecker product as the update of each weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightDelta, divisor
from ..method import register
from .lora import OnProjections

Start = Literal["left", "right"]


class Kronecker(WeightDelta):
    """dW = s kron(C, D) with C (c_out, c_in); D (d_out, d_in taps) is whole, or a product B A of rank R.

    Args:
        sizes: of C and of D, outputs first.
        taps: of a convolution, entries of its kernel.
    """

    def __init__(self, sizes: tuple[tuple[int, int], tuple[int, int]], taps: int, rank: int, scale: float) -> None:
        super().__init__()
        outer, (d_out, d_in) = sizes
        self.scale = scale
        self.C = nn.Parameter(torch.empty(outer))
        if rank >= max(d_out, d_in) / 2:
            self.D = nn.Parameter(torch.empty(d_out, d_in * taps))
        else:
            self.B = nn.Parameter(torch.empty(d_out, rank))
            self.A = nn.Parameter(torch.empty(rank, d_in * taps))

    def start(self, zero: Start) -> None:
        """Kaiming-uniform, but one factor is zero: C, or the last of D."""
        for tensor in self.parameters():
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        right = self.D if "D" in self._parameters else self.A
        nn.init.zeros_(self.C if zero == "left" else right)

    def delta(self) -> Tensor:
        right = self.D if "D" in self._parameters else self.B @ self.A
        return self.scale * torch.kron(self.C, right)


@register("lokr", family="reparameter", paper="2309.14859", year=2024, venue="ICLR")
class LoKr(OnProjections):
    """The update of each weight is the Kronecker product of a small matrix and of a larger one of low rank.

    W' = W + s kron(C, B A), s = alpha / R, C (c_out, c_in), B (d_out, R), A (R, d_in), c d = the sizes of W. Each size
    is split into its two divisors next to its square root, the smaller one for C (768 = 24 x 32), or by `factor`. D is
    a whole matrix where B A would save nothing, R >= max(d_out, d_in) / 2. It folds into W.

    C starts at zero as in peft, or A (LyCORIS), so step 0 is the frozen model. A convolution's D is (d_out, d_in k k).
    The decomposition of C, Tucker forms and dropouts are left out.
    """

    rank: int = Field(default=8, gt=0)
    """R of the larger factor"""
    alpha: float | None = None
    """numerator of the scale alpha / R; None means R, so that s = 1"""
    factor: int | None = Field(default=None, gt=0)
    """most rows and columns of C; None for those next to the square root"""
    zero: Start = "left"
    """which factor starts at zero: left (C) or right (the last of D)"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for place in self.places(backbone):
            width, width_in, *kernel = place.weight.shape
            small = tuple(self._small(size) for size in (width, width_in))
            sizes = (small[0], small[1]), (width // small[0], width_in // small[1])
            layer = Kronecker(sizes, math.prod(kernel), self.rank, scale)
            layer.start(self.zero)
            yield place.reparametrize(layer)

    def _small(self, size: int) -> int:
        if self.factor is not None and size % self.factor == 0:
            return self.factor
        root = divisor(size, math.isqrt(size))
        return root if self.factor is None else divisor(size, min(self.factor, math.isqrt(size)))
