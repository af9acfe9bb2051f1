"""ST-Adapter: bottlenecks with a depthwise convolution over time on the residual stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.spatio_temporal import SpatioTemporalBottleneck
from ..method import Method, register

KERNELS = {"3x1x1": (3, 1, 1), "3x3x3": (3, 3, 3), "1x3x3": (1, 3, 3)}


@register("st_adapter", family="adapter", paper="2206.13559", year=2022, venue="NeurIPS")
class STAdapter(Method):
    """Before attention, and before the MLP, the tokens of a clip's frames pass a bottleneck that convolves over time.

    x = ST_a(x); x = x + attn(LN1 x); x = ST_m(x); x = x + MLP(LN2 x), with ST(p) = p + W_2 C(W_1 p + b_1) + b_2 for the
    tokens p of the grid, W_1 (R, D), W_2 (D, R), C a depthwise convolution over (T, H, W). No norm and no activation
    (the authors' code); the class token passes unchanged. C and all biases start at zero.

    `sites=("mlp",)` is the authors' `12x384`, both are `24x384`. Where the class token is the feature, the adapter
    before the last MLP can learn nothing, as in the authors' code. The paper averages the class tokens of the frames
    before the final norm; here the mean is taken behind it. On a model that takes whole clips, C sees its own (T, H, W)
    grid, which the paper does not try.
    """

    bottleneck: int = Field(default=384, gt=0)
    """R"""
    kernel: Literal["3x1x1", "3x3x3", "1x3x3"] = "3x1x1"
    """of C: time x height x width; "1x3x3" sees no time"""
    sites: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """where: before attention, before the MLP, or both"""
    blocks: int | None = Field(default=None, gt=0)
    """how many of the last blocks; None for all"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require_time("ST-Adapter")
        for block in backbone.blocks[-(self.blocks or 0) :]:
            if "attn" in self.sites:
                block.require_grid()
                yield block.before(self._layer(block.dim))
            if "mlp" in self.sites:
                place = block.stream1 if block.has("stream1") else block.mlp_branch
                place.require_grid()
                layer = self._layer(block.dim)
                if block is backbone.blocks[-1] and backbone.facts.pooling == "token":
                    layer.unread()
                yield place.after(layer) if block.has("stream1") else place.before(layer)

    def _layer(self, width: int) -> SpatioTemporalBottleneck:
        time, height, across = KERNELS[self.kernel]
        return SpatioTemporalBottleneck(width, self.bottleneck, (time, height, across))
