"""torchvision's RegNet: bottlenecks with grouped convolutions, with squeeze-and-excitation (Y) or without (X)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride
from ..convolutional_net import make_net
from ..describe import family
from ..points import Point
from .torchvision_resnet import fully_connected, stated_size


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    net: Any = model
    pooled: Tensor = torch.flatten(net.avgpool(net.trunk_output(net.stem(images))), 1)
    return pooled


@family("torchvision_regnet", "torchvision.models.regnet.RegNet")
def describe_torchvision_regnet(model: nn.Module) -> Backbone:
    """torchvision RegNet X and Y."""
    net: Any = model
    units = [_unit(block) for stage in net.trunk_output for block in stage]
    last: Any = units[-1].module
    return make_net(
        model,
        family="torchvision_regnet",
        stem=(net.stem,),
        after_stem=net.stem,
        units=units,
        behind=net.avgpool,
        head={},
        final=None,
        pooling="avg",
        classifier=fully_connected,
        library="torchvision",
        name=type(model).__name__,
        size=stated_size(model),
        pooled=_pooled,
        width=int(last.f.c[0].out_channels),
    )


def _unit(block: Any) -> Unit:
    gate = getattr(block.f, "se", None)
    end = Point(block.f, "output")
    return Unit(
        module=block,
        branch=(block.f,),
        enter=Point(block.f, "input"),
        inner=end,
        exit=end,
        keeps=block.proj is None,
        gate=() if gate is None else (gate,),
        shortcut=block.proj,
        stride=conv_stride((block.f.a, block.f.b, block.f.c)),
    )
