"""SAM 2's image encoder of transformers: a Hiera over a map (B, H, W, D), with windows and, in some blocks, without.

A block that changes the width pools its queries and its shortcut; it belongs to the downsampling before the blocks of
its stage, so that every block keeps its shape. Windows are cut and put together inside a block, between no modules: the
attention branch of such a block ends nowhere that an edit could act.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, Stage
from ..builders import Where, norm, projection, site
from ..describe import family
from ..hf_model import HfPooling, architecture, as_pixels, pixels, size_of
from ..places import Place
from ..points import Layout, Point
from ..probe import Classifier
from ..towers import Parts, pre_norm_block

WINDOWS = "its windows are cut and put together inside of the block, between no modules"


@family("hf_sam2", "transformers.models.sam2.modeling_sam2.Sam2HieraDetModel")
def describe_hf_sam2(model: nn.Module) -> Backbone:
    """transformers' SAM 2: the Hiera inside of Sam2Model or Sam2VisionModel; pooled by the mean of its last map."""
    net: Any = model
    config = net.config
    size, stride = size_of(config), int(net.patch_embed.projection.stride[0])
    start = Where(-1, Layout.MAP, (size[0] // stride, size[1] // stride), 0, stride)
    stages: list[Stage] = []
    first = 0
    for number, count in enumerate(config.blocks_per_stage):
        layers = list(net.blocks[first : first + count])
        first += count
        stages.append(_stage(number, layers, sum(len(stage.blocks) for stage in stages), size, stride))
        stride = stages[-1].stride
    last, depth = stages[-1], sum(len(stage.blocks) for stage in stages)
    own = {"pos_embed": (model, "pos_embed"), "pos_embed_window": (model, "pos_embed_window")}
    others: list[Place] = [
        projection("patch", net.patch_embed.projection, start.but(Layout.CHANNELS_FIRST)),
        outline.embedding(
            Point(net.blocks[0], "input"), start, int(config.embed_dim_per_stage[0]), own=own, nesting=-1
        ),
    ]
    pooling = HfPooling(as_pixels, mean_of_positions)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_sam2",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=int(config.embed_dim_per_stage[-1]),
            prefix_tokens=0,
            pooling="avg",
        ),
        pixels=pixels(int(config.num_channels), pooling),
        trunk=outline.trunk(stages, width=int(config.embed_dim_per_stage[-1])),
        stages=stages,
        norm=None,
        others=others,
        pooled=pooling,
        classifier=Classifier(None),
        end=Point(net.blocks[-1], "output"),
        end_layout=last.layout,
    )


def mean_of_positions(model: Any, outputs: Any) -> Tensor:
    """Of the last map, (B, H, W, D)."""
    mean: Tensor = outputs.last_hidden_state.mean(dim=(1, 2))
    return mean


def _stage(number: int, layers: list[Any], depth: int, size: tuple[int, int], stride: int) -> Stage:
    """One stage; a first block that changes the width is its downsampling."""
    changes = layers[0] if layers[0].dim != layers[0].dim_out else None
    before = Where(depth - 1, Layout.MAP, (size[0] // stride, size[1] // stride), 0, stride)
    if changes is not None and changes.query_stride is not None:
        stride *= int(changes.query_stride[0])
    where = Where(depth, Layout.MAP, (size[0] // stride, size[1] // stride), 0, stride)
    parts: dict[str, Place] = {} if changes is None else _downsampling(f"stages.{number}.downsample", changes, before)
    kept = layers if changes is None else layers[1:]
    blocks = [
        _block(depth + offset, number, layer, Where(depth + offset, Layout.MAP, where.grid, 0, stride))
        for offset, layer in enumerate(kept)
    ]
    if blocks:
        return outline.stage(number, blocks, where, parts, downsample=changes)
    assert changes is not None  # a stage of a single block, which changes the width
    return Stage(
        name=f"stages.{number}",
        width=int(changes.dim_out),
        width_in=int(changes.dim),
        enter=Point(changes, "input"),
        exit=Point(changes, "output"),
        verbs=frozenset({"tap"}),
        nesting=1,
        parts=parts,
        index=number,
        downsample=changes,
        **where.shared(),
    )


def _downsampling(name: str, layer: Any, where: Where) -> dict[str, Place]:
    window = int(layer.window_size)
    attended = where.within((window, window)) if window else where
    inner: list[Place] = [
        norm(f"{name}.norm1", layer.layer_norm1, where, int(layer.dim)),
        projection(f"{name}.reduction", layer.proj, where),
        projection(f"{name}.attn.qkv", layer.attn.qkv, attended),
        projection(f"{name}.attn.proj", layer.attn.proj, attended),
        norm(f"{name}.norm2", layer.layer_norm2, where, int(layer.dim_out)),
        projection(f"{name}.mlp.fc1", layer.mlp.proj_in, where),
        projection(f"{name}.mlp.fc2", layer.mlp.proj_out, where),
    ]
    return {place.name: place for place in inner}


def _block(index: int, stage: int, layer: Any, where: Where) -> Block:
    window, width, name = int(layer.window_size), int(layer.dim_out), f"blocks.{index}.attn"
    attended = where.within((window, window)) if window else where
    qkv = projection(f"{name}.qkv", layer.attn.qkv, attended)
    inside: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        rows = (offset * width, (offset + 1) * width)
        inside[letter] = projection(f"{name}.{letter}", layer.attn.qkv, attended, rows)
    inside["proj"] = projection(f"{name}.proj", layer.attn.proj, attended)
    entering = Point(layer.attn, "input", "hidden_states")
    attn = site(name, AttentionSite, entering, Point(layer.attn, "output"), attended, width, inside, None, (qkv,))
    parts = Parts(
        block=layer,
        norm1=layer.layer_norm1,
        attn=layer.attn,
        attn_end=layer.attn,
        norm2=layer.layer_norm2,
        mlp=layer.mlp,
        projections={"fc1": layer.mlp.proj_in, "fc2": layer.mlp.proj_out},
        mlp_end=layer.mlp,
    )
    block = pre_norm_block(index, parts, attn, where, None)
    block.stage = stage
    if window:
        if any(side % window for side in where.grid or ()):
            block.norm1.consumers = ()  # padded windows carry zeros that the norm's edits never see
        block.attn_branch.exit, block.attn_branch.steps, block.attn_branch.writer = None, (), None
        block.attn_branch.verbs = frozenset({"before"})
        for part in ("skip1", "stream1"):
            block.parts[part].verbs = frozenset()
        for part in ("attn_branch", "skip1", "stream1"):
            block.parts[part].refusals = dict.fromkeys(("after", "parallel", "wrap", "tap", "replace"), WINDOWS)
    return block
