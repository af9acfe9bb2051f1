"""DTL+: DTL with one shared depthwise convolution on what is written back."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from ..backbones.blocks import Stage
from ..layers.compact_side import same_depthwise
from ..method import register
from .dtl import DTL


@register("dtl_plus", category="addition", family="side", paper="2312.07856", year=2024, venue="AAAI")
class DTLPlus(DTL):
    """DTL whose write-back passes a k x k depthwise convolution over the patch tokens.

    x_{i+1} = Block_i(x_i) + [theta(h_i)_cls ; DWConv(theta(h_i)_patches)], from block s on: no bias, stride 1, as much
    padding as keeps the grid (an even k pads one more at the right and bottom). ONE convolution serves all blocks of a
    stage, so a ViT has one. Everything else, and the letters, as in DTL.
    """

    kernel: int = Field(default=3, gt=0)
    """k; 3, 4 or 5 by task in the paper's scripts"""

    def _fusion(self, stage: Stage) -> nn.Module | None:
        return same_depthwise(stage.width, self.kernel)
