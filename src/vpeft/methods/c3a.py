"""C3A: block-circulant updates."""

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

Start = Literal["xavier_uniform", "kaiming_uniform", "gaussian", "zero"]


class BlockCirculant(WeightDelta):
    """dW = blocks of b x b / D_in, each circulant: its first row is a kernel, each next row is moved right by one."""

    def __init__(self, width_in: int, width: int, block: int, start: Start) -> None:
        super().__init__()
        self.width_in = width_in
        self.kernel = nn.Parameter(torch.zeros(width // block, width_in // block, block))
        if start == "gaussian":
            nn.init.normal_(self.kernel)
        elif start != "zero":
            bound = math.sqrt(6 / (width_in + width)) if start == "xavier_uniform" else math.sqrt(1 / width_in)
            nn.init.uniform_(self.kernel, -bound, bound)

    def delta(self) -> Tensor:
        rows, columns, block = self.kernel.shape
        steps = torch.arange(block, device=self.kernel.device)
        blocks = self.kernel[..., (steps - steps[:, None]) % block]  # (rows, columns, b, b)
        return blocks.transpose(1, 2).reshape(rows * block, columns * block) / self.width_in


@register("c3a", family="reparameter", paper="2407.19342", year=2025, venue="ACL Findings")
class C3A(OnProjections):
    """Each block of the update is a circular convolution with a trained kernel: few numbers, but no bound on the rank.

    dW = C / D_in, C of blocks b x b with C[t, j] = w[(j - t) mod b]: D_in D_out / b numbers. Here the matrix itself is
    made; the paper applies it by Fourier transforms, which gives the same. It folds into W.

    The kernels start Xavier-uniform as in peft, so step 0 is not the frozen model; start="zero" gives it. b is the
    largest common divisor of D_in and D_out that is at most `block` (peft refuses others). Convolutions, as matrices
    (out, in k k), are ours.
    """

    block: int = Field(default=256, gt=0)
    """b at most"""
    start: Start = "xavier_uniform"
    """of the kernels"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "zero"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in self.places(backbone):
            width, width_in = place.weight.flatten(1).shape
            block = divisor(math.gcd(width, width_in), self.block)
            yield place.reparametrize(BlockCirculant(width_in, width, block, self.start))
