"""torchvision's residual nets for clips: R3D, R(2+1)D and MC3, whose convolutions run over time, height and width.

They have no table of positions, so they take clips of any length; three layers halve the number of steps in time.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.video.resnet import Conv3DNoTemporal, Conv3DSimple

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, leaves, time_stride
from ..convolutional_net import make_net
from ..describe import FramesRule, family
from ..points import Point
from ..rewrites import EDITED, EditedConv3d
from .torchvision_resnet import fully_connected
from .torchvision_swin3d import stated_frames

TRAINED_ON = 16  # frames of the clips that torchvision's weights were trained on
SIDE = 112  # and their height and width


class EditedConv3DSimple(EditedConv3d, Conv3DSimple):  # type: ignore[misc]
    """torchvision's convolution over time, height and width with edits of its weight."""


class EditedConv3DNoTemporal(EditedConv3d, Conv3DNoTemporal):  # type: ignore[misc]
    """The same for the one over height and width."""


EDITED[Conv3DSimple] = EditedConv3DSimple
EDITED[Conv3DNoTemporal] = EditedConv3DNoTemporal


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Any number of frames is taken as it is."""
    net: Any = model
    net.clip_frames = frames
    return []


def _pooled(model: nn.Module, clips: Tensor) -> Tensor:
    net: Any = model
    x = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(clips)))))
    pooled: Tensor = net.avgpool(x).flatten(1)
    return pooled


@family("torchvision_video_resnet", "torchvision.models.video.resnet.VideoResNet", fit_frames=fit_frames)
def describe_torchvision_video_resnet(model: nn.Module) -> Backbone:
    """torchvision R3D, R(2+1)D and MC3."""
    net: Any = model
    units = [_unit(block) for layer in (net.layer1, net.layer2, net.layer3, net.layer4) for block in layer]
    *_, last = (layer for layer in leaves(units[-1].branch) if isinstance(layer, nn.Conv3d))
    side = int(getattr(model, "image_size", SIDE))
    return make_net(
        model,
        family="torchvision_video_resnet",
        stem=tuple(net.stem),
        after_stem=net.stem,
        units=units,
        behind=net.avgpool,
        head={},
        final=None,
        pooling="avg",
        classifier=fully_connected,
        library="torchvision",
        name=type(model).__name__,
        size=(side, side),
        pooled=_pooled,
        width=int(last.out_channels),
        frames=stated_frames(model, TRAINED_ON),
    )


def _unit(block: Any) -> Unit:
    """A residual block: the shortcut is added in place to what the last norm gives."""
    chain = [getattr(block, key) for key in ("conv1", "conv2", "conv3") if hasattr(block, key)]
    end = Point(chain[-1], "output", overwritten=True)
    return Unit(
        module=block,
        branch=chain,
        enter=Point(block.conv1, "input"),
        inner=end,
        exit=end,
        keeps=block.downsample is None,
        shortcut=block.downsample,
        stride=conv_stride(chain),
        time_stride=time_stride(chain),
    )
