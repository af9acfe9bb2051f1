"""The usual classifier: one linear layer on the pooled feature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..backbones.features import Features
from ..head import Head, pooled

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

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs)."""
        return nn.Linear.forward(self, pooled(features))
