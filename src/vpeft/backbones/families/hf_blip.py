"""transformers' BLIP: its image tower, a ViT with a fused qkv. The text encoder beside it is a part of the host."""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block
from ..builders import Where, own_parameters, projection, site
from ..describe import family
from ..hf_model import HfPooling, architecture, as_pixels, classifier, pixels, pooler_output, size_of
from ..places import Norm, Place
from ..points import Layout, Point
from ..rows import Rows
from ..tokens import TokenCarrier
from ..towers import Parts, pre_norm_block


@family(
    "hf_blip",
    "transformers.models.blip.modeling_blip.BlipVisionModel",
    "transformers.models.blip_2.modeling_blip_2.Blip2VisionModel",
)
def describe_hf_blip(model: nn.Module) -> Backbone:
    """transformers' BLIP and BLIP-2: the image tower, alone or inside of a whole one; the feature is its pooled one."""
    blip: Any = model
    config, stem, layers = blip.config, blip.embeddings, blip.encoder.layers
    size, stride, width = size_of(config), int(config.patch_size), int(config.hidden_size)
    grid, carrier, depth = (size[0] // stride, size[1] // stride), TokenCarrier(1), len(layers)
    blocks = [
        _block(index, layer, Where(index, Layout.TOKENS, grid, 1, stride), width, carrier)
        for index, layer in enumerate(layers)
    ]
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, grid, 1, stride))
    tokens = Where(-1, Layout.TOKENS, grid, 1, stride)
    own = {"cls_token": (stem, "class_embedding"), "pos_embed": (stem, "position_embedding")}
    # on the sequence, and on the class token behind it
    last = Norm(
        name="norm_last",
        width=width,
        enter=None,
        exit=None,
        verbs=frozenset({"unfreeze"}),
        refusals={"after": "the model runs it twice, so that an edit would act twice"},
        own=own_parameters(blip.post_layernorm),
        **Where(depth, Layout.TOKENS, grid, 1, stride).shared(),
    )
    others: list[Place] = [
        projection("patch", stem.patch_embedding, tokens.but(Layout.CHANNELS_FIRST, 0)),
        outline.embedding(Point(stem, "output"), tokens, width, own=own),
        last,
    ]
    pooling = HfPooling(as_pixels, pooler_output)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_blip",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=1,
            pooling="token",
        ),
        pixels=pixels(int(stem.patch_embedding.in_channels), pooling),
        trunk=trunk,
        stages=[stage],
        norm=None,
        others=others,
        pooled=pooling,
        classifier=classifier,
    )


def _block(index: int, layer: Any, where: Where, width: int, carrier: TokenCarrier) -> Block:
    name, attention = f"blocks.{index}.attn", layer.self_attn
    inner: dict[str, Place] = {"qkv": projection(f"{name}.qkv", attention.qkv, where)}
    for number, letter in enumerate("qkv"):
        rows = Rows(number * width, (number + 1) * width)
        inner[letter] = projection(f"{name}.{letter}", attention.qkv, where, rows)
    inner["proj"] = projection(f"{name}.proj", attention.projection, where)
    attn = site(
        name,
        AttentionSite,
        Point(attention, "input", "hidden_states"),
        Point(attention, "output"),
        where,
        width,
        inner,
        None,
        (inner["qkv"],),  # type: ignore[arg-type]
    )
    parts = Parts(
        block=layer,
        norm1=layer.layer_norm1,
        attn=attention,
        attn_end=attention,
        norm2=layer.layer_norm2,
        mlp=layer.mlp,
        projections={"fc1": layer.mlp.fc1, "fc2": layer.mlp.fc2},
        mlp_end=layer.mlp,
    )
    return pre_norm_block(index, parts, attn, where, carrier)
