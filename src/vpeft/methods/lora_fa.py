"""LoRA-FA: LoRA whose down-projection stays at its random start."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register
from .ssl import Target


@register("lora_fa", category="partial", family="reparameter", paper="2308.03303", year=2023, venue="arXiv")
class LoRAFA(Method):
    """y = W x + b + s B drop(A x), A (R, D_in) frozen at its start, B (D_out, R) trained from zero; s = alpha / R.

    Nothing of x is kept for the backward pass, only z = A x, (B, N, R): D / R times less than LoRA. The dropout acts on
    z for the same reason. A starts Kaiming-uniform as nn.Linear and is saved with the adapter. It folds into W.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=8, gt=0)
    """R"""
    alpha: float | None = None
    """numerator of s; None means R, so that s = 1"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """on z"""
    targets: tuple[Target, ...] = ("q", "v")
    """projections of each block; qkv is q, k and v where the model stores them apart"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for block in backbone.blocks:
            for place in (place for target in self.targets for place in block.stored(target)):
                if place.weight[0, 0].numel() > 1 or place.weight.shape[1] != place.width_in:
                    raise MissingPlace(f"{place.name} is a convolution of a neighbourhood; LoRA-FA changes linears.")
                yield place.parallel(HalfFrozen(place.width_in, place.width, self.rank, scale, self.dropout))


class HalfFrozen(nn.Module):
    """x (..., in) -> s B drop(A x), with A a buffer."""

    A: Tensor

    def __init__(self, width_in: int, width: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.register_buffer("A", nn.init.kaiming_uniform_(torch.empty(rank, width_in), a=math.sqrt(5)))
        self.B = nn.Parameter(torch.zeros(width, rank))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(self.dropout(F.linear(x, self.A)), self.B)

    def weight_delta(self) -> tuple[Tensor, None]:
        """s B A, (out, in)."""
        return self.scale * self.B @ self.A, None
