"""A linear classifier on a wide random layer, whose weights a closed form gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.features import Features
from ..head import Head, pooled, with_rows_of
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..batch import Batch


class RandomProjectionHead(Head):
    """y = V relu(f W) for the pooled feature f (B, D), with W (D, M) drawn once from N(0, 1) and frozen.

    Source: RanPAC (McDonnell et al., arXiv 2307.02251), where V = ((G + r I)^-1 Q)^T follows from sums over all images:
    G = H^T H, Q = H^T Y, H = relu(F W). W is no part of the adapter's tensors: the seed gives it again.

    Args:
        width: D.
        outputs: classes, the rows of V.
        projection: M; the paper has 10,000.
        seed: of W.
    """

    kind = "random_projection"
    random: Tensor

    def __init__(self, width: int, outputs: int, projection: int = 10_000, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("random", torch.randn(width, projection, generator=draw, device="cpu"), persistent=False)
        self.weight = nn.Parameter(torch.empty(outputs, projection))
        nn.init.trunc_normal_(self.weight, std=HEAD_STD)

    def hidden(self, features: Tensor) -> Tensor:
        """relu(f W): (B, D) -> (B, M)."""
        return functional.relu(features @ self.random)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Enter V (K, M)."""
        self.weight.copy_(weight)

    def grown(self, outputs: int) -> Self:
        """With further rows of V; see `Head.grown`."""
        fresh = type(self)(**{**self.settings, "outputs": outputs}).to(self.weight)
        with_rows_of(fresh, self)
        return fresh

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs)."""
        return functional.linear(self.hidden(pooled(features)), self.weight)
