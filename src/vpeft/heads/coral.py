"""A head for ordered levels: one direction in the features, and a threshold between each level and the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones.features import Features
from ..head import Head, pooled
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..batch import Batch


class CoralHead(Head):
    """y_k = w f + b_k for the pooled feature f (B, D): the logit that a sample lies above level k.

    As all share w, they never contradict each other once the thresholds are in order. Source: Cao, Mirjalili, Raschka,
    "Rank consistent ordinal regression for neural networks" (arXiv 1901.07884). Thresholds start evenly from 1 down to
    0, as in the authors' code.

    Args:
        width: channels D of the pooled feature.
        outputs: levels less one.
    """

    kind = "coral"

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Linear(width, 1, bias=False)
        nn.init.trunc_normal_(self.direction.weight, std=HEAD_STD)
        self.bias = nn.Parameter(torch.arange(outputs, 0, -1).float() / outputs)

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs)."""
        return self.direction(pooled(features)) + self.bias
