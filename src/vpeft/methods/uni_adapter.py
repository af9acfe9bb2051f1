"""UniAdapter: an adapter whose norm and down projection serve all towers, here on the image tower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..method import Method, register


@register("uni_adapter", category="addition", family="adapter", paper="2302.06605", year=2024, venue="ICLR")
class UniAdapter(Method):
    """A scaled bottleneck with its own norm beside each MLP; in the whole method its first half serves every tower.

    out = x + MLP(LN(x)) + s (W_v ReLU(W_down LN'(x) + b_down) + b_v), x (B, N, D) before the norm, W_down (R, D),
    W_v (D, R), LN' trained. W_down starts Kaiming-uniform, W_v at N(0, 0.02), since the authors' own zeros are drawn
    anew, so step 0 is not the frozen model; start="identity" keeps W_v at zero.

    This is the image form, which equals AdaptFormer with a norm in front and that start. The text and cross-modal
    projections, which read the same W_down ReLU half, and the offsets of keys and values for video stand in BERT
    layers with norms behind them, and are left out.
    """

    bottleneck: int = Field(default=128, gt=0)
    """R; 128 or 512 in the paper"""
    scale: float = 0.1
    """s, multiplies the bias too"""
    start: Literal["published", "identity"] = "published"
    """W_v at N(0, 0.02), or zero"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            layer = Bottleneck(block.dim, self.bottleneck, scale=self.scale, layer_norm="in")
            if self.start == "published":
                nn.init.trunc_normal_(layer.up.weight, std=0.02)
            yield block.mlp_branch.parallel(layer)
