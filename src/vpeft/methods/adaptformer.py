"""AdaptFormer: a bottleneck beside each MLP."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from .method import Method
from .registry import register


@register("adaptformer", family="adapter", paper="2205.13535")
class AdaptFormer(Method):
    """A scaled bottleneck in parallel to the MLP branch of every block.

    out = x + MLP(LN(x)) + s (W_up drop(ReLU(W_down x + b_down)) + b_up), x (B, N, D) before the norm, W_down (R, D),
    W_up (D, R). The branch is added after LayerScale and drop path and is never dropped by them.

    Departure from the paper's equation, with its code: x enters W_down un-normed (its authors confirm the code).
    """

    bottleneck: int = Field(default=64, gt=0)
    """R; the VTAB-1k tables use 8"""
    scale: float = 0.1
    """s, multiplies the bias too"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after the ReLU"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            yield block.mlp_branch.parallel(
                Bottleneck(block.dim, self.bottleneck, scale=self.scale, dropout=self.dropout)
            )
