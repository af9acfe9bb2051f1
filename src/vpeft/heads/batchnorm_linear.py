"""MAE's linear probe: the pooled feature standardised over the batch, then one linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..backbones.features import Features
from ..head import Head, pooled

if TYPE_CHECKING:
    from ..batch import Batch

# Both from MAE's main_linprobe.py.
MAE_EPS = 1e-6
MAE_STD = 0.01


class BatchNormLinearHead(Head):
    """y = W (f - mean) / sqrt(variance + eps) + b, with the batch's mean and variance, in evaluation the running ones.

    The normalisation has no scale and shift of its own. Features whose channels differ much in size (MAE's) are learnt
    with one rate so. Source: He et al., "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), A.1.

    Args:
        width: channels of the pooled feature.
        outputs: numbers for each sample.
        eps: added to the variance; MAE's by default.
    """

    kind = "batchnorm_linear"

    def __init__(self, width: int, outputs: int, eps: float = MAE_EPS) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=eps)
        self.linear = nn.Linear(width, outputs)
        nn.init.trunc_normal_(self.linear.weight, std=MAE_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs); in training B is at least two."""
        return self.linear(self.norm(pooled(features)))
