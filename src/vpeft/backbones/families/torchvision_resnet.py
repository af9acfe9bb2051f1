"""torchvision's ResNet: with it ResNeXt and Wide ResNet; and what its convolutional nets have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..convolutional import Size, Unit, conv_stride
from ..convolutional_net import make_net
from ..describe import family
from ..points import Point


def stated_size(model: nn.Module) -> Size:
    """Height and width of the images: torchvision's nets do not say, so it is 224 unless they have an `image_size`."""
    side: Any = getattr(model, "image_size", 224)
    return (int(side), int(side)) if isinstance(side, int) else (int(side[0]), int(side[1]))


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    net: Any = model
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    pooled: Tensor = torch.flatten(net.avgpool(x), 1)
    return pooled


def fully_connected(model: nn.Module) -> nn.Module:
    """The layer `fc`."""
    net: Any = model
    found: nn.Module = net.fc
    return found


@family("torchvision_resnet", "torchvision.models.resnet.ResNet")
def describe_torchvision_resnet(model: nn.Module) -> Backbone:
    """torchvision ResNet, ResNeXt and Wide ResNet."""
    net: Any = model
    layers = (net.layer1, net.layer2, net.layer3, net.layer4)
    return resnet_of(model, layers, net.avgpool, "torchvision_resnet", _pooled, fully_connected)


def resnet_of(
    model: nn.Module,
    layers: Sequence[Any],
    behind: nn.Module,
    family: str,
    pooled: Callable[[nn.Module, Tensor], Tensor],
    classifier: Callable[[nn.Module], nn.Module],
) -> Backbone:
    """A ResNet from its layers; the stem is `conv1` to `maxpool` of the model, `behind` receives the last map."""
    net: Any = model
    units = [_unit(block) for layer in layers for block in layer]
    convolutions = [layer for layer in units[-1].branch if isinstance(layer, nn.Conv2d)]
    return make_net(
        model,
        family=family,
        stem=(net.conv1, net.bn1, net.relu, net.maxpool),
        after_stem=net.maxpool,
        units=units,
        behind=behind,
        head={},
        final=None,
        pooling="avg",
        classifier=classifier,
        library="torchvision",
        name=type(model).__name__,
        size=stated_size(model),
        pooled=pooled,
        width=int(convolutions[-1].out_channels),
    )


def _unit(block: Any) -> Unit:
    """A residual block: the shortcut is added in place to what the last norm gives."""
    chain = [getattr(block, key) for key in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3") if hasattr(block, key)]
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
    )
