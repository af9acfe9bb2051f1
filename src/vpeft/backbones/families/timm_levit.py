"""timm's LeViT: attention whose values are wider than its keys, batch norms behind every projection, a learned bias.

A block has no norms before its branches; those behind the projections are `attn.qkv_norm`, `attn.proj_norm`,
`mlp.norm1` and `mlp.norm2`. The fused rows lie head by head. As keys and values differ in width, there is no
`attn.core`; as the bias is one of positions on a fixed grid, tokens cannot be inserted.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.levit import Attention, AttentionDownsample, LevitBlock, LevitDownsample
from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, norm, own_parameters, projection, site
from ..convolutional import drop_rate
from ..convolutional_net import stem_places
from ..describe import UnknownBackbone, family
from ..places import Place, Projection, Rewrites, Site
from ..points import Layout, Point
from ..rows import Rows
from ..staged import BlockMaker, Passage, lay_out
from ..timm_isotropic import architecture, own_classifier, pooled_by_head


class FreshBias(Attention):
    """timm's attention without its memory of the bias, which would outlive a step that trains the bias."""

    def get_attention_biases(self, device: torch.device) -> Tensor:
        fresh: Tensor = self.attention_biases[:, cast(Tensor, self.attention_bias_idxs)]
        return fresh


class FreshBiasDownsample(AttentionDownsample):
    """The same for attention with fewer queries."""

    def get_attention_biases(self, device: torch.device) -> Tensor:
        fresh: Tensor = self.attention_biases[:, cast(Tensor, self.attention_bias_idxs)]
        return fresh


class MeanOfHeads(nn.Module):
    """What a distilled LeViT says of a feature: the mean of its two heads."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.first(x) + self.second(x)) / 2
        return out


def _heads(model: nn.Module) -> nn.Module:
    """The last layer, or both of a distilled LeViT."""
    last: Any = own_classifier(model)
    found: nn.Module = MeanOfHeads(*last) if isinstance(last, tuple) else last
    return found


@family("timm_levit", "timm.models.levit.Levit")
def describe_timm_levit(model: nn.Module) -> Backbone:
    """timm LeViT, with linears over tokens or with convolutions over a map, distilled or not."""
    net: Any = model
    first_block = net.stages[0].blocks[0]
    side, reach = first_block.attn.resolution, int(getattr(net.stem, "stride", 0))
    if not reach:
        raise UnknownBackbone(f"{architecture(model)} has a stem of its own; timm_levit describes Stem8 and Stem16.")
    size = (int(side[0]) * reach, int(side[1]) * reach)
    stem, stride = stem_places((net.stem,), size)
    layout = Layout.CHANNELS_FIRST if net.use_conv else Layout.TOKENS
    steps: list[Passage | BlockMaker] = []
    for stage in net.stages:
        if not isinstance(stage.downsample, nn.Identity):
            steps.append(_halving(stage.downsample))
        steps += [_maker(block) for block in stage.blocks]
    made = lay_out(steps, size, stride, layout)
    last, entering = made.stages[-1], Point(first_block, "input")
    start = Where(-1, layout, (size[0] // stride, size[1] // stride), 0, stride)
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_levit",
            library="timm",
            architecture=architecture(model),
            image_size=size,
            depth=made.where.depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(net.stem, "input"), stem[0].width_in),
        trunk=outline.trunk(made.stages),
        stages=made.stages,
        norm=None,
        others=[*stem, outline.embedding(entering, start, stem[-1].width, nesting=-1), *made.tail],
        pooled=pooled_by_head,
        classifier=_heads,
        end=None if made.behind is None else Point(made.behind, "input"),
    )


def _normed(name: str, key: str, module: Any, where: Where) -> dict[str, Place]:
    """A linear or convolution and the batch norm behind it, which sees the tokens of all images as one batch."""
    linear, after = projection(f"{name}.{key}", module.linear, where), key.replace("fc", "norm")
    after = after if after != key else f"{key}_norm"
    flat = where if isinstance(module.linear, nn.Conv2d) else Where(where.depth, Layout.VECTOR, None, 0, where.stride)
    return {key: linear, after: norm(f"{name}.{after}", module.bn, flat, linear.width)}


def _mlp(name: str, module: Any, where: Where) -> dict[str, Place]:
    return {**_normed(name, "fc1", module.ln1, where), **_normed(name, "fc2", module.ln2, where)}


def _maker(module: Any) -> BlockMaker:
    kind: type = type(module)
    if kind is not LevitBlock:
        raise UnknownBackbone(f"One block is a {kind.__name__}; timm_levit describes only LevitBlock.")

    def make(index: int, stage: int, where: Where) -> Block:
        name, mlp_parts = f"blocks.{index}", _mlp(f"blocks.{index}.mlp", module.mlp, where)
        width = mlp_parts["fc1"].width_in
        attn = _attention(f"{name}.attn", module.attn, where, width)
        ends = Point(module.mlp, "input"), Point(module.mlp, "output")
        mlp = site(f"{name}.mlp", MlpSite, *ends, where, width, mlp_parts)
        halves = [
            outline.Residual(inner, Point(entered, "input"), Point(end, "output"))
            for inner, entered, end in ((attn, module.attn, module.drop_path1), (mlp, module.mlp, module.drop_path2))
        ]
        return outline.residual_pair(index, module, halves, where, width, drop_path=drop_rate(module.drop_path1))

    return make


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    key, value, heads = int(module.key_dim), int(module.val_dim), int(module.num_heads)
    parts = _normed(name, "qkv", module.qkv, where)
    for letter, (start, stop) in zip("qkv", ((0, key), (key, 2 * key), (2 * key, 2 * key + value)), strict=True):
        rows = Rows(start, stop, heads)
        parts[letter] = projection(f"{name}.{letter}", module.qkv.linear, where, rows)
    parts |= _normed(name, "proj", module.proj.ln, where)
    qkv = cast(Projection, parts["qkv"])
    made = site(
        name,
        AttentionSite,
        Point(module, "input"),
        Point(module, "output"),
        where,
        width,
        parts,
        own_parameters(module),
        (qkv,),
    )
    made.rewrites = _fresh(module)
    return made


def _fresh(module: nn.Module) -> Rewrites:
    kind: type[nn.Module] = FreshBias if isinstance(module, Attention) else FreshBiasDownsample
    return {"unfreeze": ((module, kind),)}


def _halving(module: Any) -> Passage:
    """Attention with a query for every fourth token, and an MLP."""
    kind: type = type(module)
    if kind is not LevitDownsample:
        raise UnknownBackbone(f"{kind.__name__} is no downsampling that timm_levit describes: LevitDownsample.")
    attention = module.attn_downsample

    def places(name: str, where: Where) -> dict[str, Place]:
        inner = f"{name}.attn"
        parts = _normed(inner, "kv", attention.kv, where) | _normed(inner, "q", attention.q.ln, where)
        parts |= _normed(inner, "proj", attention.proj.ln, where)
        parts["positions"] = Site(
            name=f"{inner}.positions",
            width=0,
            enter=None,
            exit=None,
            verbs=frozenset({"unfreeze"}),
            own=own_parameters(attention),
            rewrites=_fresh(attention),
            **where.shared(),
        )
        return {**parts, **_mlp(f"{name}.mlp", module.mlp, where)}

    return Passage(module, places, 2)
