"""timm's RegNet: X and Y (squeeze-and-excitation), Z (linear ends), V (before activation)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, drop_rate, is_norm
from ..convolutional_net import make_net, timm_classifier
from ..describe import family
from ..points import Point


@family("timm_regnet", "timm.models.regnet.RegNet")
def describe_timm_regnet(model: nn.Module) -> Backbone:
    """timm RegNet X, Y, Z and V."""
    net: Any = model
    units = [_unit(block) for stage in (net.s1, net.s2, net.s3, net.s4) for block in stage.children()]
    conv = getattr(net.final_conv, "conv", None)
    return make_net(
        model,
        family="timm_regnet",
        stem=(net.stem,),
        after_stem=net.stem,
        units=units,
        behind=net.final_conv,
        head={} if conv is None else {"head_conv": conv},
        final=None if conv is None else net.final_conv.bn,
        pooling=net.head.global_pool.pool_type,
        classifier=timm_classifier,
    )


def _unit(block: Any) -> Unit:
    gate = None if isinstance(block.se, nn.Identity) else block.se
    chain = [part for key, part in block.named_children() if key not in ("downsample", "drop_path", "act3")]
    pre = is_norm(chain[0])  # then branch and shortcut both begin behind the first norm
    return Unit(
        module=block,
        branch=chain,
        enter=Point(chain[1] if pre else chain[0], "input"),
        inner=Point(block.conv3, "output"),
        exit=Point(block.drop_path, "output"),
        keeps=isinstance(block.downsample, nn.Identity),
        gate=() if gate is None else (gate,),
        shortcut=None if block.downsample is None or isinstance(block.downsample, nn.Identity) else block.downsample,
        drop_path=drop_rate(block.drop_path),
        stride=conv_stride(part for part in chain if part is not gate),
    )
