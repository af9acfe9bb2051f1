"""timm's ResNetV2: pre-activation nets with standardised weights (BiT), and their post-activation form."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, drop_rate
from ..convolutional_net import make_net, timm_classifier
from ..describe import family
from ..points import Point


@family("timm_resnetv2", "timm.models.resnetv2.ResNetV2")
def describe_timm_resnetv2(model: nn.Module) -> Backbone:
    """timm ResNetV2: BiT and others, before or after activation, with or without standardised weights."""
    net: Any = model
    units = [_unit(block) for stage in net.stages for block in stage.blocks]
    final = None if isinstance(net.norm, nn.Identity) else net.norm
    return make_net(
        model,
        family="timm_resnetv2",
        stem=(net.stem,),
        after_stem=net.stem,
        units=units,
        behind=net.norm,
        head={},
        final=final,
        pooling=net.head.global_pool.pool_type,
        classifier=timm_classifier,
    )


def _unit(block: Any) -> Unit:
    chain = [part for key, part in block.named_children() if key not in ("downsample", "drop_path", "act3")]
    first, last = chain[0], chain[-1]
    return Unit(
        module=block,
        branch=chain,
        enter=Point(first, "input"),
        inner=Point(last, "output"),
        exit=Point(block.drop_path, "output"),
        keeps=block.downsample is None,
        shortcut=block.downsample,
        drop_path=drop_rate(block.drop_path),
        stride=conv_stride(chain),
    )
