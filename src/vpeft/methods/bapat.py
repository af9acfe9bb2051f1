"""BAPAT: PATT beside attention and a bottleneck beside the MLP."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..method import register
from .patt import PATT


@register("bapat", category="unified", family="unified", paper="2210.00788", year=2022, venue="arXiv")
class BAPAT(PATT):
    """PATT together with a parallel adapter that reads what the MLP reads (Swin-BAPAT; the same on ViT).

    k + s dk, v + s dv with [dk, dv] = W_2 tanh(W_1 u + b_1) + b_2, u = LN1(x), as in `patt`; and MLP(w) +
    t (W_up drop(ReLU(W_down w + b_down)) + b_up), w = LN2(x), W_down (R, D), summed before drop path.

    `vpetl_unified` is the same composition with AdaptFormer's adapter, which reads x before LN2.
    """

    bottleneck: int = Field(default=64, gt=0)
    """R"""
    adapter_scale: float = 0.1
    """t"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after the ReLU, as AdaptFormer has it"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield from super().edits(backbone)
        for block in backbone.blocks:
            layer = Bottleneck(block.dim, self.bottleneck, scale=self.adapter_scale, dropout=self.dropout)
            yield block.mlp.parallel(layer)
