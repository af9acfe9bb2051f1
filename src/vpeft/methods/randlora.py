"""RandLoRA: a full-rank update as a sum of random low-rank products with trained diagonals."""

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


class RandomBases(nn.Module):
    """A (R, shorter side) and B (longer side, N, R), frozen, of unit standard deviation, from a seed."""

    A: Tensor
    B: Tensor

    def __init__(self, shorter: int, longer: int, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (rank, shorter)), ("B", (longer, math.ceil(shorter / rank), rank))):
            self.register_buffer(name, torch.empty(shape))
            made = self.get_buffer(name).uniform_(-1, 1, generator=generator)
            made /= made.std()


class ScaledBases(WeightDelta):
    """dW = s sum_n B_n diag(l_n) A diag(g_n), or its transpose where the outputs are the shorter side."""

    dormant: dict[str, str]

    def __init__(self, bases: RandomBases, width_in: int, width: int, scale: float) -> None:
        super().__init__()
        self.bases, self.scale, self.tall = bases, scale, width_in <= width
        shorter, rank = min(width_in, width), len(bases.A)
        number = math.ceil(shorter / rank)
        self.longer = max(width_in, width)
        self.l = nn.Parameter(torch.zeros(rank, number))
        self.g = nn.Parameter(torch.full((number, shorter), 1 / max(number, shorter)))
        why = "the first step of so narrow a layer may close the ReLU behind it, before g has had a gradient"
        self.dormant = {"g": why} if shorter < 8 else {}

    def delta(self) -> Tensor:
        number, shorter = self.g.shape
        scaled = self.l[:, :, None] * self.bases.A[:, None, :shorter] * self.g  # (R, N, shorter)
        change = torch.einsum("inr,rnj->ij", self.bases.B[: self.longer, :number], scaled)
        return self.scale * (change if self.tall else change.T)


@register("randlora", family="reparameter", paper="2502.00987", year=2025, venue="ICLR")
class RandLoRA(OnProjections):
    """As many random low-rank products as fill the rank are summed; diagonals between and behind them train.

    dW = s sum_n B_n diag(l_n) A diag(g_n), n = 1 ... N = ceil(min(D_in, D_out) / R), s = alpha / R, with A (R, d) and
    B_n (D, R) frozen, d the shorter side of W and D the longer (transposed where the outputs are shorter), l_n (R,),
    g_n (d,). l starts at zero, so step 0 is the frozen model; g is constant then. It folds into W.

    Its cost is in the making of the full matrix at every step. A and B are shared by all layers, each taking its part,
    drawn uniformly from `seed` and scaled to unit deviation, and saved with the adapter. peft draws them in 16 bits and
    pairs the columns of B in another order, so its numbers differ. Convolutions, as matrices (out, in k k), are ours;
    sparse bases are left out.
    """

    rank: int = Field(default=32, gt=0)
    """R of each product; the smaller, the more numbers train"""
    alpha: float = Field(default=640.0, gt=0)
    """numerator of the scale alpha / R"""
    seed: int = Field(default=0, ge=0)
    """of A and B"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        places = self.places(backbone)
        sizes = [place.weight.flatten(1).shape for place in places]
        if not sizes:
            return
        bases = RandomBases(max(min(size) for size in sizes), max(max(size) for size in sizes), self.rank, self.seed)
        for place, (width, width_in) in zip(places, sizes, strict=True):
            yield place.reparametrize(ScaledBases(bases, width_in, width, self.alpha / self.rank))
