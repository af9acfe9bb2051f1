"""A classifier by cosine similarity: the length of a feature does not count, only its direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.features import Features
from ..head import BadHead, Head, pooled, with_rows_of
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..batch import Batch


class CosineHead(Head):
    """y_k = s cos(f, w_k) for the pooled feature f (B, D) and one vector w_k of each class.

    Source: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting" (arXiv 1804.09458), where the
    scale s starts at 10 and is learnt; Baseline++ of Chen et al. (arXiv 1904.04232) holds it fixed.

    Args:
        width: channels D of the pooled feature.
        outputs: classes.
        scale: s, at the start or throughout.
        learn_scale: whether s is trained.
    """

    kind = "cosine"

    def __init__(self, width: int, outputs: int, scale: float = 10.0, learn_scale: bool = True) -> None:
        super().__init__()
        if not scale > 0:
            raise BadHead(f"The head 'cosine' needs a scale above 0, not {scale}.")
        self.weight = nn.Parameter(torch.empty(outputs, width))
        nn.init.trunc_normal_(self.weight, std=HEAD_STD)
        value = torch.tensor(float(scale))
        if learn_scale:
            self.scale: Tensor = nn.Parameter(value)
        else:
            self.register_buffer("scale", value)

    def grown(self, outputs: int) -> Self:
        """With further directions, which start as all did; the scale is the same. See `Head.grown`."""
        fresh = type(self)(**{**self.settings, "outputs": outputs}).to(self.weight)
        with_rows_of(fresh, self)
        return fresh

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs), each from -s to s."""
        directions = functional.normalize(pooled(features), dim=-1)
        return self.scale * functional.linear(directions, functional.normalize(self.weight, dim=-1))
