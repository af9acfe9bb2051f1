"""SAM's image encoder of transformers: a map through windows and, in some blocks, over the whole image; then a neck.

Windows are cut and put together inside a layer, between no modules. So the attention branch of a block with windows
ends nowhere that an edit could act; its projections, its norm and its MLP branch are places as in any other block.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block
from ..builders import Where, norm, own_parameters, projection, site
from ..describe import family
from ..hf_model import HfPooling, architecture, as_pixels, classifier, mean_of_cells, pixels, size_of
from ..places import Place
from ..points import Layout, Point
from ..towers import Parts, pre_norm_block

WINDOWS = "its windows are cut and put together inside of the layer, between no modules"


@family("hf_sam", "transformers.models.sam.modeling_sam.SamVisionEncoder")
def describe_hf_sam(model: nn.Module) -> Backbone:
    """transformers' SAM: its image encoder, inside of SamModel or SamVisionModel; pooled by the mean of its map."""
    sam: Any = model
    config = sam.config
    size, stride = size_of(config), int(config.patch_size)
    grid = (size[0] // stride, size[1] // stride)
    blocks = [_block(index, layer, Where(index, Layout.MAP, grid, 0, stride)) for index, layer in enumerate(sam.layers)]
    depth = len(blocks)
    trunk, stage = outline.tower(blocks, Where(0, Layout.MAP, grid, 0, stride))
    behind, width = Where(depth, Layout.CHANNELS_FIRST, grid, 0, stride), int(config.output_channels)
    own = {"pos_embed": (model, "pos_embed")} if sam.pos_embed is not None else None
    others: list[Place] = [
        projection("patch", sam.patch_embed.projection, Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride)),
        outline.embedding(
            Point(sam.layers[0], "input"),
            Where(-1, Layout.MAP, grid, 0, stride),
            int(config.hidden_size),
            own=own,
            nesting=-1,
        ),
        projection("neck.0", sam.neck.conv1, behind),
        norm("neck.1", sam.neck.layer_norm1, behind, width),
        projection("neck.2", sam.neck.conv2, behind),
    ]
    pooling = HfPooling(as_pixels, mean_of_cells)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_sam",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling="avg",
        ),
        pixels=pixels(int(config.num_channels), pooling),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", sam.neck.layer_norm2, behind, width),
        others=others,
        pooled=pooling,
        classifier=classifier,
        end=Point(sam.neck, "input"),
    )


def _block(index: int, layer: Any, where: Where) -> Block:
    window, width = int(layer.window_size), int(layer.layer_norm1.weight.shape[0])
    attended = where.within((window, window)) if window else where
    parts = Parts(
        block=layer,
        norm1=layer.layer_norm1,
        attn=layer.attn,
        attn_end=layer.attn,
        norm2=layer.layer_norm2,
        mlp=layer.mlp,
        projections={"fc1": layer.mlp.lin1, "fc2": layer.mlp.lin2},
        mlp_end=layer.mlp,
    )
    block = pre_norm_block(index, parts, _attention(f"blocks.{index}.attn", layer.attn, attended, width), where, None)
    if window:
        if any(size % window for size in where.grid or ()):
            block.norm1.consumers = ()  # padded windows carry zeros that the norm's edits never see
        block.attn_branch.exit, block.attn_branch.steps, block.attn_branch.writer = None, (), None
        block.attn_branch.verbs = frozenset({"before"})
        for part in ("skip1", "stream1"):
            block.parts[part].verbs = frozenset()
        for part in ("attn_branch", "skip1", "stream1"):
            block.parts[part].refusals = dict.fromkeys(("after", "parallel", "wrap", "tap", "replace"), WINDOWS)
    return block


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    """The fused qkv, its slices and the output projection."""
    qkv = projection(f"{name}.qkv", module.qkv, where)
    third = qkv.width // 3
    parts: dict[str, Place] = {"qkv": qkv}
    for offset, letter in enumerate("qkv"):
        parts[letter] = projection(f"{name}.{letter}", module.qkv, where, (offset * third, (offset + 1) * third))
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    entering = Point(module, "input", "hidden_states")
    made: AttentionSite = site(
        name, AttentionSite, entering, Point(module, "output"), where, width, parts, own_parameters(module), (qkv,)
    )
    return made
