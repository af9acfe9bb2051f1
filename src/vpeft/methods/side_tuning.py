"""Side-tuning: a small network sees the image, and its feature is blended with the frozen one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.side_image import AlexNetSide, ConvolutionalSide, Join, JoinedSide
from ..method import Method, register


@register("side_tuning", category="addition", family="side", paper="1912.13503", year=2020, venue="ECCV")
class SideTuning(Method):
    """The feature is a learnt blend of the frozen one and that of a small network on the same image.

    R(x) = sigmoid(a) B(x) + (1 - sigmoid(a)) S(x), with B(x) (B, D) the frozen pooled feature, S the side network and a
    ONE number for all channels, 0 at the start: both weigh a half, so step 0 is not the frozen model. Nothing inside
    the backbone is read, and no gradient enters it.

    S is the paper's kind of four-layer convolutional net, started at random (the paper distils it from the base or
    trains it from scratch), or AlexNet's convolutions with a linear map, as VPT's baseline has it. Other joins are
    those of the authors' code; its MLP has a BatchNorm inside, left out here. The form for several tasks in a row
    (softmax weights over all earlier sides) is not part of this.
    """

    side: Literal["convolutional", "alexnet"] = "convolutional"
    """S"""
    hidden: int = Field(default=64, gt=0)
    """channels of the convolutional side"""
    pretrained: bool = False
    """start AlexNet from ImageNet-1k weights (a download); otherwise at random"""
    join: Join = "alpha"
    """alpha, sum, product, film or mlp"""
    alpha: float = 0.0
    """a at the start"""
    learn_alpha: bool = True
    """whether a trains"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        width, channels = backbone.facts.width, backbone.pixels.width
        side: nn.Module
        if self.side == "alexnet":
            side = AlexNetSide(width, self.pretrained)
        else:
            side = ConvolutionalSide(channels, self.hidden, width)
        joined = JoinedSide(side, width, self.join, self.alpha, self.learn_alpha)
        yield backbone.outlet.after(joined, reads=(backbone.pixels,))
