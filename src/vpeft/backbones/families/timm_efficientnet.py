"""timm's EfficientNet and MobileNetV3 classes: inverted residuals, fused ones, depthwise-separable ones, and V4's."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, drop_rate
from ..convolutional_net import make_net, timm_classifier
from ..describe import UnknownBackbone, family
from ..points import Point

# what each kind of block runs in order: what its sub-layer ends with comes last
CHAINS: dict[str, tuple[str, ...]] = {
    "ConvBnAct": ("conv", "bn1", "aa"),
    "DepthwiseSeparableConv": ("conv_s2d", "bn_s2d", "conv_dw", "bn1", "aa", "se", "conv_pw", "bn2"),
    "InvertedResidual": ("conv_s2d", "bn_s2d", "conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3"),
    "CondConvResidual": ("conv_pw", "bn1", "conv_dw", "bn2", "se", "conv_pwl", "bn3"),
    "EdgeResidual": ("conv_exp", "bn1", "aa", "se", "conv_pwl", "bn2"),
    "UniversalInvertedResidual": ("dw_start", "pw_exp", "dw_mid", "se", "pw_proj", "dw_end"),
    "MobileAttention": ("norm", "attn"),
}


@family("timm_efficientnet", "timm.models.efficientnet.EfficientNet", "timm.models.mobilenetv3.MobileNetV3")
def describe_timm_efficientnet(model: nn.Module) -> Backbone:
    """timm EfficientNet (V1, V2, Lite, MnasNet, MixNet ...), MobileNet V1 to V4, FBNet, LCNet and relatives."""
    net: Any = model
    late = not hasattr(net, "bn2")  # MobileNetV3 convolves the pooled map
    conv, final = net.conv_head, net.norm_head if late else net.bn2
    return make_net(
        model,
        family="timm_efficientnet",
        stem=(net.conv_stem, net.bn1),
        after_stem=net.bn1,
        units=[_unit(index, block) for index, block in enumerate(block for stage in net.blocks for block in stage)],
        behind=net.global_pool if late else conv,
        head={"head_conv": conv} if isinstance(conv, nn.Conv2d) else {},
        final=None if isinstance(final, nn.Identity) else final,
        pooling=net.global_pool.pool_type,
        classifier=timm_classifier,
        pooled_head=late,
    )


def _unit(index: int, block: Any) -> Unit:
    kind = type(block).__name__
    if kind not in CHAINS:
        raise UnknownBackbone(f"Unit {index} is a {kind}; timm_efficientnet describes {', '.join(CHAINS)}.")
    chain = [part for key in CHAINS[kind] if (part := getattr(block, key, None)) is not None]
    gate = getattr(block, "se", None)
    gates: tuple[nn.Module, ...] = () if gate is None or isinstance(gate, nn.Identity) else (gate,)
    cpe = getattr(block, "conv_cpe_dw", None)
    return Unit(
        module=block,
        branch=chain,
        enter=Point(chain[0], "input"),
        inner=Point(chain[-1], "output"),
        exit=Point(block.drop_path, "output"),
        # a block with a positional convolution adds that to its input before the shortcut begins
        keeps=bool(block.has_skip) and cpe is None,
        gate=gates,
        drop_path=drop_rate(block.drop_path),
        stride=conv_stride(part for part in chain if part is not gate) if kind != "MobileAttention" else 1,
    )
