"""RepAdapter: linear adapters that fold into the next layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.linear_bottleneck import LinearBottleneck
from ..method import Method, register


@register("repadapter", category="addition", family="adapter", paper="2302.08106", year=2023, venue="arXiv")
class RepAdapter(Method):
    """A linear bottleneck with a grouped second map between each norm and the linear that reads it.

    R(x) = x + s (W_B drop(W_A x + a) + b) on x = LN(h), (B, N, D): before qkv and fc1, inside the residual branch.
    W_A is (R, D) and dense; W_B has g groups: outputs of group i read the inner channels of group i alone, (D, R / g).
    There is no activation, so it folds into the next linear: W' = W (I + s W_B W_A), c' = c + W s (W_B a + b).

    On a ConvNeXt, which has no first norm, the first adapter acts on what enters the depthwise convolution and not on
    the shortcut, as in the authors' code; there it cannot fold, as the convolution pads with zeros.
    """

    sites: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """both is the authors' repblock, ("attn",) their repattn"""
    bottleneck: int = Field(default=8, gt=0)
    """R"""
    groups: int = Field(default=2, gt=0)
    """g; it must divide R and D"""
    scale: float = 1.0
    """s; the authors choose it for each task from 0.1, 0.5, 1, 5, 10"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """between the two maps"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for site in self.sites:
                layer = LinearBottleneck(
                    block.dim,
                    block.dim,
                    self.bottleneck,
                    scale=self.scale,
                    dropout=self.dropout,
                    groups=self.groups,
                    residual=True,
                )
                if site == "mlp":
                    yield block.norm2.after(layer)
                elif block.has("norm1"):
                    yield block.norm1.after(layer)
                else:
                    yield block.projection("conv").before(layer)
