"""`pocket_clip`: a ViT of timm and plain blocks of timm over words."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..builders import Where, norm
from ..describe import describe, family
from ..host import Towers
from ..inputs import MadeUpTexts
from ..places import Site
from ..pocket_words import END, PAD, PocketTokenizer
from ..points import Layout, Point
from ..texts import TextPooling, TextSpec, text_places
from ..timm_isotropic import layer_scales, residual_block
from ..tokens import TokenCarrier
from .timm_vit import attention_places, mlp_places

NAME = "pocket_clip"


def _read(model: nn.Module, inputs: Tensor) -> Tensor:
    found: Tensor = model(inputs)
    return found


def _no_classifier(model: nn.Module) -> nn.Module:
    return nn.Identity()


@family(NAME, "vpeft.backbones.pocket_clip.PocketClip")
def describe_pocket_clip(model: nn.Module) -> Backbone:
    """The small image-text model that pretraining/pocket_clip.py makes: `image` and `text`."""
    clip: Any = model
    image = describe(clip.visual).pooled_by(_read)
    image.through(clip.image_projection, int(clip.image_projection.out_features))
    return Towers(model, {"image": image, "text": _text(clip.text)}, NAME, NAME)


def _text(text: Any) -> Backbone:
    vocabulary, width = text.token_embedding.weight.shape
    length, depth, carrier = int(text.pos_embed.shape[1]), len(text.blocks), TokenCarrier(1)
    blocks = []
    for index, module in enumerate(text.blocks):
        where = Where(index, Layout.TOKENS, None, 1)
        attn = attention_places(f"blocks.{index}.attn", module.attn, where, width)
        mlp = mlp_places(f"blocks.{index}.mlp", module.mlp, where, width)
        blocks.append(residual_block(index, module, attn, mlp, where, carrier, gains=layer_scales(module), steps=True))
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, None, 1))
    pooling = TextPooling(_read)
    return Backbone(
        module=text,
        facts=Facts(
            family=NAME,
            library="vpeft",
            architecture="pocket_clip.text",
            image_size=(1, length),
            depth=depth,
            width=int(text.projection.out_features),
            prefix_tokens=1,
            pooling="end of text",
        ),
        pixels=Site(name="pixels", width=1, enter=None, exit=None, verbs=frozenset(), layout=Layout.VECTOR, depth=-1),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", text.norm, Where(depth, Layout.TOKENS, None, 1), width),
        others=[
            *text_places(pooling.anchor, text.token_embedding, width, 1, length),
            outline.embedding(
                Point(text.pos_drop, "output"),
                Where(-1, Layout.TOKENS, None, 1),
                width,
                own={"pos_embed": (text, "pos_embed")},
            ),
        ],
        pooled=pooling,
        classifier=_no_classifier,
        end=Point(text.norm, "input"),
        inputs=TextSpec(
            (1, length),
            1,
            layout="tokens",
            names=("text",),
            make=MadeUpTexts(int(vocabulary), length, END),
            end=END,
            pad=PAD,
            vocabulary=int(vocabulary),
            embedding=text.token_embedding,
            tokenizer=PocketTokenizer(length),
        ),
    )
