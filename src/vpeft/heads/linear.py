"""The usual classifier: one linear layer on the pooled feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from ..backbones.features import Features
from ..head import Head, pooled, with_rows_of

if TYPE_CHECKING:
    from ..batch import Batch

# The usual start of a classifier on a pre-trained vision transformer (timm, and VPT, SSF, FacT after it).
HEAD_STD = 0.02


class LinearHead(Head, nn.Linear):
    """y = W f + b on the pooled feature f (B, D): weights from a normal of deviation 0.02 cut at two, biases 0."""

    kind = "linear"

    def __init__(self, width: int, outputs: int) -> None:
        nn.Linear.__init__(self, width, outputs)
        nn.init.trunc_normal_(self.weight, std=HEAD_STD)
        nn.init.zeros_(self.bias)

    def grown(self, outputs: int) -> Self:
        """With further rows, which start as all rows did; see `Head.grown`."""
        fresh = type(self)(self.in_features, outputs).to(self.weight)
        with_rows_of(fresh, self)
        return fresh

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs)."""
        return nn.Linear.forward(self, pooled(features))
