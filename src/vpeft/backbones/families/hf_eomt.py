"""EoMT of transformers: a plain ViT that segments. Its queries join the sequence before the last blocks; no decoder.

The model is its own host: `tune` runs its forward with its masks and classes. Blocks before the queries join see the
class token, the registers and the patches; blocks behind see the queries in front of them too. So tokens can be
inserted in any block, and in the blocks of one of the two stages, but not through the place where the queries join.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block
from ..builders import Where, norm, projection, token_rewrites
from ..describe import family
from ..hf_attention import edited_class
from ..hf_model import HfPooling, architecture, as_pixels, pair, pixels, size_of
from ..hf_reading import read_layer
from ..host import in_host
from ..places import Place
from ..points import Layout, Point
from ..probe import Classifier
from ..tokens import TokenCarrier
from .hf_vit import assembled, attention_places

MODELING = "transformers.models"
JOIN = "its queries join in front of the sequence before the last blocks; insert tokens in single blocks"


@dataclass
class MeanBehind:
    """The mean of the tokens behind the first `prefix` ones."""

    prefix: int

    def __call__(self, model: Any, outputs: Any) -> Tensor:
        mean: Tensor = outputs.last_hidden_state[:, self.prefix :].mean(dim=1)
        return mean


@family(
    "hf_eomt",
    f"{MODELING}.eomt.modeling_eomt.EomtForUniversalSegmentation",
    f"{MODELING}.eomt_dinov3.modeling_eomt_dinov3.EomtDinov3ForUniversalSegmentation",
)
def describe_hf_eomt(model: nn.Module) -> Backbone:
    """transformers' EoMT on DINOv2 and DINOv3: the whole segmenter, which is a plain ViT; pooled over its patches."""
    net: Any = model
    config, stem, layers = net.config, net.embeddings, net.layers
    size, side = size_of(config), pair(config.patch_size)
    grid, prefix, queries = (
        (size[0] // side[0], size[1] // side[1]),
        int(stem.num_prefix_tokens),
        int(config.num_queries),
    )
    width, depth, join = int(config.hidden_size), len(layers), len(layers) - int(config.num_blocks)

    def where(index: int) -> Where:
        return Where(index, Layout.TOKENS, grid, prefix + (queries if index >= join else 0), side[0])

    blocks = [_block(index, layer, where(index), width) for index, layer in enumerate(layers)]
    parts = [part for part in (blocks[:join], blocks[join:]) if part]
    for number, part in enumerate(parts):
        for block in part:
            block.stage = number
    stages = [outline.stage(number, part, where(part[0].depth)) for number, part in enumerate(parts)]
    trunk = outline.trunk(stages)
    if len(stages) > 1:
        trunk.carrier, trunk.rewrites, trunk.verbs = None, {}, trunk.verbs - {"insert_tokens"}
    tokens = Where(-1, Layout.TOKENS, grid, prefix, side[0])
    patch = stem.patch_embeddings
    own: dict[str, tuple[nn.Module, str]] = {"cls_token": (stem, "cls_token"), "reg_token": (stem, "register_tokens")}
    if "position_embeddings" in stem._modules:
        own["pos_embed"] = (stem.position_embeddings, "weight")
    others: list[Place] = [
        projection("patch", patch._modules.get("projection", patch), tokens.but(Layout.CHANNELS_FIRST, 0)),
        outline.embedding(Point(stem, "output"), tokens, width, own=own),
    ]
    pooling = HfPooling(as_pixels, MeanBehind(prefix + queries))
    made = Backbone(
        module=model,
        facts=Facts(
            family="hf_eomt",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=prefix,
            pooling="avg",
        ),
        pixels=pixels(int(config.num_channels), pooling),
        trunk=trunk,
        stages=stages,
        norm=norm("norm", net.layernorm, where(depth), width),
        others=others,
        pooled=pooling,
        classifier=Classifier(None),
        end=Point(layers[-1], "output"),
        # the masks choose what the queries attend to, through which no gradient passes
        unused=[p for part in (net.upscale_block, net.mask_head, net.class_predictor) for p in part.parameters()],
        no_tokens=JOIN,
    )
    return in_host(made, model)


def _block(index: int, layer: Any, where: Where, width: int) -> Block:
    found = read_layer(layer)
    attn = attention_places(f"blocks.{index}.attn", found, where, width)
    block = assembled(index, layer, found, attn, where, width, TokenCarrier(where.prefix))
    kind = edited_class(type(found.core))
    block.rewrites = token_rewrites(((found.core, kind),) if kind is not None else ())
    return block
