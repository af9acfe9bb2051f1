"""torchvision's EfficientNet, versions 1 and 2: inverted residuals, fused or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride
from ..convolutional_net import make_net
from ..describe import family
from ..points import Point
from .torchvision_resnet import stated_size


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    net: Any = model
    x = torch.flatten(net.avgpool(net.features(images)), 1)
    if isinstance(net.classifier, nn.Sequential):
        for layer in list(net.classifier)[:-1]:
            x = layer(x)
    pooled: Tensor = x
    return pooled


def last_of_classifier(model: nn.Module) -> nn.Module:
    """The last layer of `classifier`, or all of it where it was replaced by one module."""
    net: Any = model
    found: nn.Module = net.classifier[-1] if isinstance(net.classifier, nn.Sequential) else net.classifier
    return found


@family("torchvision_efficientnet", "torchvision.models.efficientnet.EfficientNet")
def describe_torchvision_efficientnet(model: nn.Module) -> Backbone:
    """torchvision EfficientNet B0 to B7 and V2."""
    net: Any = model
    stem, head = net.features[0], net.features[-1]
    units = [_unit(block) for stage in net.features[1:-1] for block in stage]
    return make_net(
        model,
        family="torchvision_efficientnet",
        stem=(stem,),
        after_stem=stem,
        units=units,
        behind=head,
        head={"head_conv": head[0]},
        final=head[1],
        pooling="avg",
        classifier=last_of_classifier,
        library="torchvision",
        name=type(model).__name__,
        size=stated_size(model),
        pooled=_pooled,
        width=int(head[0].out_channels),
    )


def _unit(block: Any) -> Unit:
    """An inverted residual: where there is a shortcut, it is added in place to the branch."""
    gates = [layer for layer in block.block if type(layer).__name__ == "SqueezeExcitation"]
    keeps = bool(block.use_res_connect)
    return Unit(
        module=block,
        branch=(block.block,),
        enter=Point(block.block, "input"),
        inner=Point(block.block, "output", overwritten=keeps),
        exit=Point(block.stochastic_depth if keeps else block.block, "output", overwritten=keeps),
        keeps=keeps,
        gate=gates,
        drop_path=float(block.stochastic_depth.p),
        stride=conv_stride(layer for layer in block.block if layer not in gates),
    )
