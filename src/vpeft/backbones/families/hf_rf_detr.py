"""RF-DETR's backbone of transformers: a DINOv2 whose sequence is cut into windows, with a class token in each.

Between blocks the batch axis holds the windows of all images, (B * windows, 1 + N, D). Some blocks attend over a whole
image: they join the windows before their first norm and cut them again behind their attention, between no modules. The
tokens of a window are no grid of the image, so places here have none.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block
from ..builders import Where, norm, projection
from ..describe import UnknownBackbone, family
from ..hf_model import HfPooling, architecture, as_pixels, classifier, for_maps, mean_of_map, pixels, size_of
from ..hf_reading import read_layer
from ..places import Place
from ..points import Layout, Point
from .hf_vit import assembled, attention_places

JOINED = "its windows are joined before its norm and cut behind its attention, between no modules"
NO_TOKENS = "its sequences are windows of an image, and its maps are read out of them by position"


@family("hf_rf_detr", "transformers.models.rf_detr.modeling_rf_detr.RfDetrDinov2Backbone")
def describe_hf_rf_detr(model: nn.Module) -> Backbone:
    """transformers' RF-DETR: its windowed DINOv2, inside of RfDetrForObjectDetection; pooled by the mean of its map."""
    net: Any = model
    config, stem = net.config, net.embeddings
    if not for_maps(model):
        raise UnknownBackbone(
            f"This {type(model).__name__} gives no map of its last stage; ask for it in out_features."
        )
    size, side = size_of(config), int(config.patch_size)
    width, depth, layers = int(config.hidden_size), len(net.encoder.layer), net.encoder.layer
    blocks = [
        _block(index, layer, Where(index, Layout.TOKENS, None, 1, side), width) for index, layer in enumerate(layers)
    ]
    tokens, behind = Where(-1, Layout.TOKENS, None, 1, side), Where(depth, Layout.TOKENS, None, 1, side)
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, None, 1, side))
    own = {"cls_token": (stem, "cls_token"), "pos_embed": (stem, "position_embeddings")}
    others: list[Place] = [
        projection("patch", stem.patch_embeddings.projection, tokens.but(Layout.CHANNELS_FIRST, 0)),
        outline.embedding(Point(stem, "output"), tokens, width, own=own),
    ]
    pooling = HfPooling(as_pixels, mean_of_map)
    mask = stem._parameters.get("mask_token")
    idle = [] if mask is None else [mask]
    if not config.apply_layernorm:
        idle += list(net.layernorm.parameters())
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_rf_detr",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=1,
            pooling="avg",
        ),
        pixels=pixels(int(config.num_channels), pooling),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", net.layernorm, behind, width) if config.apply_layernorm else None,
        others=others,
        pooled=pooling,
        classifier=classifier,
        end=Point(layers[-1], "output"),
        unused=idle,
        no_tokens=NO_TOKENS,
    )


def _block(index: int, layer: Any, where: Where, width: int) -> Block:
    found = read_layer(layer)
    attn = attention_places(f"blocks.{index}.attn", found, where, width)
    block = assembled(index, layer, found, attn, where, width, None)
    if layer.global_attention and layer.num_windows > 1:
        block.attn_branch.exit, block.attn_branch.steps, block.attn_branch.writer = None, (), None
        block.attn_branch.verbs = frozenset({"before"})
        for part in ("skip1", "stream1"):
            block.parts[part].verbs = frozenset()
        for part in ("attn_branch", "skip1", "stream1"):
            block.parts[part].refusals = dict.fromkeys(("after", "parallel", "wrap", "tap", "replace"), JOINED)
    return block
