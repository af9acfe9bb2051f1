"""LoRA-XS: a small square matrix between frozen singular vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightDelta
from ..method import register
from .lora import OnProjections


class BetweenSingularVectors(WeightDelta):
    """dW = s B R A, B = U_r S_r (out, r) and A = V_r^T (r, in) of the weight, frozen; R (r, r) from N(0, std)."""

    A: Tensor
    B: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float, std: float) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        self.register_buffer("A", right[:rank].contiguous())
        self.register_buffer("B", (left[:, :rank] * values[:rank]).contiguous())
        self.R = nn.Parameter(torch.randn(len(self.A), len(self.A)) * std)
        self.scale = scale

    def delta(self) -> Tensor:
        return self.scale * self.B @ (self.R @ self.A)


@register("lora_xs", family="reparameter", paper="2405.17604", year=2025, venue="ECAI")
class LoRAXS(OnProjections):
    """A LoRA whose outer matrices are the frozen top singular vectors of the weight; only R x R numbers train between.

    W' = W + s B R A, s = alpha / r, with B = U_r S_r (D_out, r), A = V_r^T (r, D_in) of W = U S V^T and R (r, r). R
    starts at N(0, 1e-5), so step 0 is only near the frozen model; std=0 gives it. It folds into W. r^2 numbers train
    for each layer.

    A and B are saved with the adapter, as singular vectors have no fixed sign. A layer of a smaller rank has that one.
    """

    rank: int = Field(default=16, gt=0)
    """r; 4 to 64 in the paper"""
    alpha: float | None = None
    """numerator of the scale alpha / r; None means r, so that s = 1 (our choice: the paper sets alpha for each task)"""
    std: float = Field(default=1e-5, ge=0.0)
    """standard deviation of R at the start"""

    @property
    def starts_as_identity(self) -> bool:
        return self.std == 0.0

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for place in self.places(backbone):
            yield place.reparametrize(BetweenSingularVectors(place.weight, self.rank, scale, self.std))
