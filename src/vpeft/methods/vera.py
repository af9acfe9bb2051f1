"""VeRA: random matrices that all layers share, scaled by trained vectors."""

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


class RandomFactors(nn.Module):
    """A (R, widest input) and B (widest output, R), frozen: Kaiming-uniform as nn.Linear, from a seed."""

    A: Tensor
    B: Tensor

    def __init__(self, width_in: int, width: int, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (rank, width_in)), ("B", (width, rank))):
            self.register_buffer(name, torch.empty(shape))
            nn.init.kaiming_uniform_(self.get_buffer(name), a=math.sqrt(5), generator=generator)


class ScaledFactors(WeightDelta):
    """dW = diag(b) B diag(d) A, with the first D_in columns of A and the first D_out rows of B."""

    def __init__(self, factors: RandomFactors, width_in: int, width: int, start: float) -> None:
        super().__init__()
        self.factors, self.width_in = factors, width_in
        self.d = nn.Parameter(torch.full((len(factors.A),), start))
        self.b = nn.Parameter(torch.zeros(width))

    def delta(self) -> Tensor:
        inner = self.d[:, None] * self.factors.A[:, : self.width_in]
        return (self.b[:, None] * self.factors.B[: len(self.b)]) @ inner


@register("vera", family="reparameter", paper="2310.11454", year=2024, venue="ICLR")
class VeRA(OnProjections):
    """A low-rank update whose two matrices are random, frozen and the same for all layers; two vectors train.

    y = W x + b + l_b * B (l_d * A x), A (R, D_in), B (D_out, R), l_d (R,), l_b (D_out,). l_d starts at 0.1 and l_b at
    zero, so step 0 is the frozen model. A and B are as wide as the widest layer, and each layer takes their first
    columns and rows (peft; the paper's layers are of one size). It folds into W.

    A and B are drawn from `seed` and saved with the adapter, as the draws of a seed may change with the library.
    """

    rank: int = Field(default=256, gt=0)
    """R; 256 to 1024 in the paper"""
    start: float = 0.1
    """first value of l_d; the paper tries 1, 0.1 and 1e-7"""
    seed: int = Field(default=0, ge=0)
    """of A and B"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        places = self.places(backbone)
        sizes = [place.weight.flatten(1).shape for place in places]
        if not sizes:
            return
        factors = RandomFactors(max(w for _, w in sizes), max(w for w, _ in sizes), self.rank, self.seed)
        for place, (width, width_in) in zip(places, sizes, strict=True):
            yield place.reparametrize(ScaledFactors(factors, width_in, width, self.start))
