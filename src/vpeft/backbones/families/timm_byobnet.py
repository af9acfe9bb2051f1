"""timm's ByobNet class: ResNets of many kinds, GENet, RepVGG, MobileOne, RegNet Z, and nets with self-attention inside.

A RepVGG or MobileOne unit has no shortcut but parallel convolutions, so that such nets have no blocks: what they have
is every convolution and norm. The layers of a self-attention (bottleneck, halo, lambda) are no places of their own.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, drop_rate
from ..convolutional_net import make_net, timm_classifier
from ..describe import UnknownBackbone, family
from ..points import Point

# what each kind of block runs in order; what gates the channels is `attn` or `attn_last`
CHAINS: dict[str, tuple[str, ...]] = {
    "BasicBlock": ("conv1_kxk", "attn", "conv2_kxk", "attn_last"),
    "BottleneckBlock": ("conv1_1x1", "conv2_kxk", "conv2b_kxk", "attn", "conv3_1x1", "attn_last"),
    "DarkBlock": ("conv1_1x1", "attn", "conv2_kxk", "attn_last"),
    "EdgeBlock": ("conv1_kxk", "attn", "conv2_1x1", "attn_last"),
    "SelfAttnBlock": ("conv1_1x1", "conv2_kxk", "post_attn", "conv3_1x1"),
}
PARALLEL: dict[str, tuple[str, ...]] = {
    "RepVggBlock": ("identity", "conv_kxk", "conv_1x1", "reparam_conv"),
    "MobileOneBlock": ("identity", "conv_kxk", "conv_scale", "reparam_conv"),
}


@family("timm_byobnet", "timm.models.byobnet.ByobNet")
def describe_timm_byobnet(model: nn.Module) -> Backbone:
    """timm ByobNet: ResNets 26t to 61q, GENet, RepVGG, MobileOne, RegNet Z, Halo-, Bot-, LambdaNets, CLIP's ResNets."""
    net: Any = model
    final, head = net.final_conv, net.head
    pooled_norm = getattr(head, "norm", None)
    convolved = not isinstance(final, nn.Identity)
    norm = final.bn if convolved else pooled_norm
    further = {"head_conv": final.conv} if convolved else {}
    hidden = getattr(getattr(head, "pre_logits", None), "fc", None)
    return make_net(
        model,
        family="timm_byobnet",
        stem=(net.stem,),
        after_stem=net.stem,
        units=[_unit(block) for stage in net.stages for block in stage],
        behind=final,
        head=further if hidden is None else {**further, "pre_logits": hidden},
        final=None if isinstance(norm, nn.Identity) else norm,
        pooling="avg" if hasattr(head, "global_pool") else "token",
        classifier=timm_classifier,
        pooled_head=not convolved and norm is not None,
        stem_stride=int(getattr(net.stem, "stride", 2)),
        dynamic=not any(_sized(getattr(block, "self_attn", None)) for stage in net.stages for block in stage),
    )


def _unit(block: Any) -> Unit:
    kind = type(block).__name__
    if kind in PARALLEL:
        inner = [part for key in PARALLEL[kind] if (part := getattr(block, key, None)) is not None]
        widest = inner[-1] if getattr(block, "reparam_conv", None) is not None else block.conv_kxk
        first = widest[0] if isinstance(widest, nn.ModuleList) else widest
        return Unit(
            module=block,
            branch=inner,
            enter=Point(block, "input"),
            inner=Point(block.attn, "input"),
            exit=Point(block, "output"),
            keeps=False,
            gate=_gates(block.attn),
            stride=conv_stride([first]),
        )
    if kind not in CHAINS:
        known = ", ".join([*CHAINS, *PARALLEL])
        raise UnknownBackbone(f"One block is a {kind}; timm_byobnet describes only {known}.")
    chain = [part for key in CHAINS[kind] if not isinstance(part := getattr(block, key), nn.Identity)]
    gates = tuple(gate for key in ("attn", "attn_last") for gate in _gates(getattr(block, key, nn.Identity())))
    shortcut, keeps = block.shortcut, isinstance(block.shortcut, nn.Identity)
    steps = [part for part in chain if part not in gates]
    return Unit(
        module=block,
        branch=chain,
        enter=Point(chain[0], "input"),
        inner=Point(chain[-1], "output"),
        exit=Point(block.drop_path, "output"),
        keeps=keeps,
        gate=gates,
        shortcut=None if keeps else shortcut,
        drop_path=drop_rate(block.drop_path),
        stride=1 if keeps else conv_stride([shortcut] if shortcut is not None else steps),
    )


def _gates(attn: nn.Module) -> tuple[nn.Module, ...]:
    return () if isinstance(attn, nn.Identity) else (attn,)


def _sized(attn: object) -> bool:
    """Whether this self-attention has positions of one size of maps, or cuts the map into blocks."""
    positions = getattr(attn, "pos_embed", None)
    sizes = (getattr(attn, "feat_size", None), getattr(attn, "block_size", None), getattr(positions, "height", None))
    return any(size is not None for size in sizes)
