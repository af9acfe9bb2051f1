"""FourierFT: a few trained Fourier coefficients as the update of each weight."""

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


class SparseSpectrum(WeightDelta):
    """dW = s Re(ifft2(F)), F (out, in) zero but for n real trained coefficients at places drawn from a seed."""

    index: Tensor
    dormant: dict[str, str]

    def __init__(self, width_in: int, width: int, count: int, scale: float, seed: int, zero: bool) -> None:
        super().__init__()
        self.shape, self.scale = (width, width_in), scale
        order = torch.randperm(width * width_in, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.register_buffer("index", order[:count].int())
        self.coefficients = nn.Parameter(torch.zeros(len(self.index)) if zero else torch.randn(len(self.index)))
        # The entries of the update start with this standard deviation, which grows as the layer shrinks.
        deviation = scale * math.sqrt(len(self.index)) / order.numel()
        saturated = not zero and deviation > 1
        why = (
            f"the random update of so small a layer starts at {deviation:.0f} and may saturate what follows; see `zero`"
        )
        self.dormant = {"coefficients": why} if saturated else {}

    def delta(self) -> Tensor:
        empty = self.coefficients.new_zeros(self.shape[0] * self.shape[1])
        spectrum = empty.scatter(0, self.index.long(), self.coefficients).reshape(self.shape)
        change: Tensor = torch.fft.ifft2(spectrum).real * self.scale
        return change


@register("fourierft", family="reparameter", paper="2405.03003", year=2024, venue="ICML")
class FourierFT(OnProjections):
    """The update of each weight is the inverse Fourier transform of a matrix with n trained entries.

    W' = W + s Re(ifft2(F)), F (D_out, D_in) zero but for n real coefficients; their places are random and the same in
    all layers of one size. The coefficients start at N(0, 1) as in the paper and peft, so step 0 is not the frozen
    model; zero=True gives that one. It folds into W. n numbers train for each layer, whatever its size.

    A layer with fewer than n entries has all of them. The transform is computed in single precision. The image models
    of the paper have n = 3000 or 10000 and s = 300.
    """

    count: int = Field(default=1000, gt=0)
    """n, coefficients of each layer"""
    scale: float = 150.0
    """s"""
    seed: int = Field(default=777, ge=0)
    """of the places"""
    zero: bool = False
    """start at zero instead of N(0, 1)"""

    @property
    def starts_as_identity(self) -> bool:
        return self.zero

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in self.places(backbone):
            width, width_in = place.weight.flatten(1).shape
            yield place.reparametrize(SparseSpectrum(width_in, width, self.count, self.scale, self.seed, self.zero))
