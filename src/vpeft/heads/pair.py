"""A head that compares two images: the features of a pair, put together so that their order does not matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..backbones.features import Features
from ..head import Head, pooled

if TYPE_CHECKING:
    from ..batch import Batch


class PairHead(Head):
    """y = W [|a - b|, a * b] + c for the pooled features a, b (D) of the two images of a pair."""

    kind = "pair"

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(2 * width, outputs)

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """Features (2 B, D), the two of a pair one behind the other -> (B, outputs)."""
        found = self.norm(pooled(features))
        first, second = found.reshape(-1, 2, found.shape[-1]).unbind(1)
        return self.linear(torch.cat([(first - second).abs(), first * second], dim=-1))
