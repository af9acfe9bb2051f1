"""Conv-Adapter: a grouped convolution and a pointwise one beside the spatial convolution of each block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import Layout, MissingPlace
from ..method import Method, register


@register("conv_adapter", category="addition", family="adapter", paper="2208.07463", year=2024, venue="CVPR workshop")
class ConvAdapter(Method):
    """a = alpha * (W_up f(W_down x + b_down) + b_up) beside a K x K convolution that reads x (B, C, H, W).

    W_down is K x K to C / r channels in C / r groups, with that convolution's stride and padding, W_up 1x1, alpha one
    number for each output channel, from one. In a bottleneck block (ResNet) a joins what enters the next 1x1
    convolution; beside a depthwise convolution (ConvNeXt) its output; the reductions between ConvNeXt's stages have one
    too. On Swin a 7 x 7 one reads norm1(x) and joins behind the attention's residual add.

    W_down and W_up start Kaiming-normal by fan out where f is ReLU, N(0, 0.02) with GELU, so step 0 is not the frozen
    model. Departure: the code gives a ResNet a new BatchNorm before its pooling, for every method; not here.
    """

    ratio: int = Field(default=8, gt=0)
    """r; the paper has 4 to 32 by task"""
    kernel: int = Field(default=7, gt=0)
    """K on Swin; elsewhere that of the convolution"""
    activation: Literal["auto", "relu", "gelu"] = "auto"
    """f; auto is ReLU where the block's norms are BatchNorms, else GELU"""
    norms: bool = True
    """whether the LayerNorms train, as in the code"""
    reductions: bool = True
    """whether convolutions between the stages have one, where a norm stands in front of them"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        batch_norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.module.modules())
        gelu = self.activation == "gelu" or (self.activation == "auto" and not batch_norms)
        for stage in backbone.stages:
            for name, part in stage.parts.items():
                if isinstance(part, Block):
                    yield self._beside(part, gelu)
                elif not self.reductions or not name.endswith("downsample.reduction"):
                    continue
                elif isinstance(part, Projection) and _spatial(part):
                    yield part.parallel(self._layer(part, gelu))
        for norm in backbone.norms if self.norms else ():
            owner = next(iter(norm.own.values()), (None, ""))[0]
            if norm.own and not isinstance(owner, nn.modules.batchnorm._BatchNorm):
                yield norm.unfreeze()

    def _beside(self, block: Block, gelu: bool) -> Edit:
        found: list[Projection] = [place for place in block.projections if _spatial(place)]
        if block.has("mlp.conv") and block.has("mlp.fc2") and len(found) == 1:
            (conv,) = found
            return block.mlp.fc2.before(Joined(self._layer(conv, gelu)), reads=(conv.input,))
        if len(found) == 1:
            return found[0].parallel(self._layer(found[0], gelu))
        if not found and block.has("norm1") and block.has("attn_branch") and block.norm1.layout is Layout.MAP:
            inner = self._inner(block.name, block.dim)
            layer = GroupedPair(block.dim, inner, block.dim, self.kernel, 1, self.kernel // 2, gelu)
            return block.attn_branch.parallel(OnMap(layer), reads=(block.norm1,))
        raise MissingPlace(
            f"{block.name} has {len(found)} spatial convolutions and no window attention on a map; Conv-Adapter stands"
            " beside the one spatial convolution of a block, or beside attention that reads a map."
        )

    def _layer(self, place: Projection, gelu: bool) -> GroupedPair:
        conv = place.module
        assert isinstance(conv, nn.Conv2d)
        width = place.width
        stride, padding, kernel = conv.stride[0], conv.padding, conv.kernel_size[0]
        if isinstance(padding, str) or conv.dilation[0] > 1:
            raise MissingPlace(f"The padding or dilation of {place.name} is not one that Conv-Adapter can repeat.")
        return GroupedPair(
            place.width_in, self._inner(place.name, place.width_in), width, kernel, stride, padding[0], gelu
        )

    def _inner(self, name: str, width: int) -> int:
        if width % self.ratio:
            raise MissingPlace(f"{name} reads {width} channels, which ratio = {self.ratio} does not divide.")
        return width // self.ratio


def _spatial(place: Projection) -> bool:
    """Whether this is a convolution with a kernel larger than one."""
    return isinstance(place.module, nn.Conv2d) and place.module.kernel_size[0] > 1


class GroupedPair(nn.Module):
    """x (B, C, H, W) -> alpha * (W_up f(W_down x + b_down) + b_up)."""

    channels_first = True

    def __init__(
        self, width_in: int, inner: int, width: int, kernel: int, stride: int, padding: int, gelu: bool
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(width_in, inner, kernel, stride, padding, groups=inner)
        self.up = nn.Conv2d(inner, width, 1)
        self.alpha = nn.Parameter(torch.ones(width, 1, 1))
        self.gelu = gelu
        if not gelu and inner < 8:
            why = f"all {inner} inner channels may be negative all over a small map, where a ReLU has no gradient"
            self.dormant = dict.fromkeys(("down.weight", "down.bias", "up.weight"), why)
        for conv in (self.down, self.up):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            if gelu:
                nn.init.trunc_normal_(conv.weight, std=0.02)
            else:
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        out: Tensor = self.up(F.gelu(inner) if self.gelu else F.relu(inner))
        return self.alpha * out


class Joined(nn.Module):
    """(h, x) -> h + layer(x)."""

    channels_first = True

    def __init__(self, layer: GroupedPair) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        return hidden + torch.as_tensor(self.layer(x))


class OnMap(nn.Module):
    """x (B, H, W, C) -> layer(x), channels last."""

    def __init__(self, layer: GroupedPair) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layer(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
