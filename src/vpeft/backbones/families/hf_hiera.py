"""Hiera of transformers: mask units in the order in which they are pooled, so a sequence without rows and columns.

A layer that changes the width pools its queries and its shortcut; it belongs to the downsampling before the blocks of
its stage, so that every block keeps its shape. Tokens and maps have no place between units of fixed size.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, Stage
from ..builders import Where, norm, projection, site
from ..describe import UnknownBackbone, family
from ..hf_model import (
    HfPooling,
    architecture,
    as_pixels,
    classifier,
    for_maps,
    mean_of_map,
    pixels,
    pooler_output,
    size_of,
    tower,
)
from ..hf_reading import read_layer
from ..places import Place
from ..points import Layout, Point
from .hf_vit import assembled

MODELING = "transformers.models.hiera.modeling_hiera"


class First(nn.Module):
    """A layer that gives its hidden states and more, as one that gives the hidden states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.layer(x)[0]


@family(
    "hf_hiera",
    f"{MODELING}.HieraModel",
    f"{MODELING}.HieraForImageClassification",
    f"{MODELING}.HieraBackbone",
)
def describe_hf_hiera(model: nn.Module) -> Backbone:
    """transformers Hiera, alone, for classification or as a detector's backbone."""
    inner = tower(model)
    stem, config, size = inner.embeddings, inner.config, size_of(inner.config)
    patch, stride = stem.patch_embeddings.projection, int(stem.patch_embeddings.projection.stride[0])
    stages: list[Stage] = []
    for number, module in enumerate(inner.encoder.stages):
        stride *= int(config.query_stride[0]) if 0 < number <= config.num_query_pool else 1
        start = sum(len(stage.blocks) for stage in stages)
        stages.append(_stage(number, module, Where(start, Layout.TOKENS, None, 0, stride)))
    first, last, depth = stages[0], stages[-1], sum(len(stage.blocks) for stage in stages)
    tokens = Where(-1, Layout.TOKENS, None, 0, first.stride)
    others: list[Place] = [
        projection("patch", patch, tokens.but(Layout.CHANNELS_FIRST)),
        outline.embedding(Point(stem, "output"), tokens, first.width, own={"pos_embed": (stem, "position_embeddings")}),
    ]
    maps = for_maps(model)
    pooling = HfPooling(as_pixels, mean_of_map if maps else pooler_output)
    if maps:  # the last map is a grid of rows again, and normed as a sequence
        norms = dict(inner.hidden_states_norms)
        layer, behind = (
            norms.pop(inner.out_features[-1]),
            Where(depth, Layout.TOKENS, _grid(size, last), 0, last.stride),
        )
        idle, end = [p for other in norms.values() for p in other.parameters()], None
    else:
        layer, behind, idle, end = inner.pooler.layernorm, Where(depth, Layout.VECTOR), [], Point(inner.pooler, "input")
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_hiera",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
        ),
        pixels=pixels(config.num_channels, pooling),
        trunk=outline.trunk(stages),
        stages=stages,
        norm=norm("norm", layer, behind, last.width),
        others=others,
        pooled=pooling,
        classifier=classifier,
        end=end,
        unused=idle,
        no_tokens="its sequence is a list of mask units of one size, which are attended and pooled by their positions",
    )


def _grid(size: tuple[int, int], last: Stage) -> tuple[int, int]:
    return size[0] // last.stride, size[1] // last.stride


def _stage(number: int, module: Any, where: Where) -> Stage:
    """One stage; a first layer that pools is its downsampling."""
    layers = list(module.layers)
    pools = layers[0].hidden_size != layers[0].hidden_size_output
    kept = layers[1:] if pools else layers
    if not kept:
        raise UnknownBackbone(f"Stage {number} of this Hiera only pools, so it has no block that could be adapted.")
    blocks = [_block(where.depth + offset, number, layer, where) for offset, layer in enumerate(kept)]
    parts: dict[str, Place] = {}
    if pools:
        name, layer = f"stages.{number}.downsample", layers[0]
        before = Where(where.depth - 1, Layout.TOKENS, None, 0, where.stride)
        width = layer.hidden_size
        inner: list[Place] = [
            norm(f"{name}.norm1", layer.layernorm_before, before, width),
            projection(f"{name}.reduction", layer.proj, before),
            projection(f"{name}.attn.qkv", layer.attn.qkv, before),
            projection(f"{name}.attn.proj", layer.attn.proj, before),
            norm(f"{name}.norm2", layer.layernorm_after, before, layer.hidden_size_output),
            projection(f"{name}.mlp.fc1", layer.mlp.fc1, before),
            projection(f"{name}.mlp.fc2", layer.mlp.fc2, before),
        ]
        parts = {place.name: place for place in inner}
    return outline.stage(number, blocks, where, parts, downsample=First(layers[0]) if pools else None)


def _block(index: int, stage: int, layer: Any, stage_where: Where) -> Block:
    where = Where(index, Layout.TOKENS, None, 0, stage_where.stride)
    width, name = int(layer.hidden_size_output), f"blocks.{index}.attn"
    qkv = projection(f"{name}.qkv", layer.attn.qkv, where)
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        rows = (offset * width, (offset + 1) * width)
        parts[letter] = projection(f"{name}.{letter}", layer.attn.qkv, where, rows)
    parts["proj"] = projection(f"{name}.proj", layer.attn.proj, where)
    ends = Point(layer.attn, "input"), Point(layer.attn, "output")
    attn = site(name, AttentionSite, *ends, where, width, parts, None, (qkv,))
    return assembled(index, layer, read_layer(layer), attn, where, width, None, stage)
