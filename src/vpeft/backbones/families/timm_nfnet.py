"""timm's NormFreeNet: residual nets without norms: their convolutions standardise the weight, and scales do the rest.

A block is x + alpha branch(beta act(x)), perhaps with a gain that starts at zero. The branch ends behind alpha, where
no module does: while an edit needs that end, a class of this file stands in for the block.
"""

from __future__ import annotations

from typing import Any

from timm.models.nfnet import NormFreeBlock
from torch import Tensor, nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, drop_rate
from ..convolutional_net import make_net, timm_classifier
from ..describe import UnknownBackbone, family
from ..points import Point, StandIn


class EditedNormFreeBlock(NormFreeBlock):
    """timm's block with an identity at the end of its branch; bit-equal to it."""

    def forward(self, x: Tensor) -> Tensor:
        block: Any = self
        out = block.act1(x) * block.beta
        shortcut = x if block.downsample is None else block.downsample(out)
        out = block.conv2(block.act2(block.conv1(out)))
        if block.conv2b is not None:
            out = block.conv2b(block.act2b(out))
        if block.attn is not None:
            out = block.attn_gain * block.attn(out)
        out = block.conv3(block.act3(out))
        if block.attn_last is not None:
            out = block.attn_gain * block.attn_last(out)
        out = block.drop_path(out)
        if block.skipinit_gain is not None:
            out.mul_(block.skipinit_gain)
        closed: Tensor = block.vpeft_closing(out * block.alpha) + shortcut
        return closed


@family("timm_nfnet", "timm.models.nfnet.NormFreeNet")
def describe_timm_nfnet(model: nn.Module) -> Backbone:
    """timm NFNet F and L, NF-ResNet, NF-RegNet and their relatives with ECA or squeeze-and-excitation."""
    net: Any = model
    final = net.final_conv
    return make_net(
        model,
        family="timm_nfnet",
        stem=(net.stem,),
        after_stem=net.stem,
        units=[_unit(block) for stage in net.stages for block in stage],
        behind=final,
        head={} if isinstance(final, nn.Identity) else {"head_conv": final},
        final=None,
        pooling=net.head.global_pool.pool_type,
        classifier=timm_classifier,
    )


def _unit(block: Any) -> Unit:
    kind: type = type(block)
    if kind not in (NormFreeBlock, EditedNormFreeBlock):
        raise UnknownBackbone(f"One block is a {kind.__name__}; timm_nfnet describes only NormFreeBlock.")
    convs = [conv for conv in (block.conv1, block.conv2, block.conv2b, block.conv3) if conv is not None]
    gates = tuple(gate for gate in (block.attn, block.attn_last) if gate is not None)
    closing, last = nn.Identity(), convs[-1] if block.attn_last is None else block.attn_last
    return Unit(
        module=block,
        branch=convs,
        enter=Point(block.act1, "input"),
        inner=Point(last, "output", overwritten=block.skipinit_gain is not None),
        exit=Point(closing, "output", needs=(StandIn(block, EditedNormFreeBlock, {"vpeft_closing": closing}),)),
        keeps=block.downsample is None,
        gate=gates,
        shortcut=block.downsample,
        drop_path=drop_rate(block.drop_path),
        stride=conv_stride(convs),
    )
