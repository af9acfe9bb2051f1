"""Text towers of transformers' CLIP, SigLIP and SigLIP 2: tokens in, (B, L) whole numbers, one feature a text out.

As with open_clip's text tower, `image_size` is (1, L), no place has a grid and `pixels` offers nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..builders import Where, norm
from ..describe import family
from ..hf_model import architecture
from ..hf_reading import read_layer
from ..inputs import MadeUpTexts
from ..places import Site
from ..points import Layout, Point
from ..texts import HfTokenizer, TextPooling, TextSpec, text_places
from .hf_vit import assembled, attention_places

MODELING = "transformers.models"


@family(
    "hf_text",
    f"{MODELING}.clip.modeling_clip.CLIPTextModel",
    f"{MODELING}.siglip.modeling_siglip.SiglipTextModel",
    f"{MODELING}.siglip2.modeling_siglip2.Siglip2TextModel",
)
def describe_hf_text(model: nn.Module) -> Backbone:
    """transformers' text towers of CLIP, SigLIP and SigLIP 2, pooled as the model pools them."""
    text: Any = model
    config, layers, stem = text.config, text.encoder.layers, text.embeddings
    width, depth = int(config.hidden_size), len(layers)
    start, end = Where(0, Layout.TOKENS, None, 0), Where(depth, Layout.TOKENS, None, 0)
    blocks = []
    for index, layer in enumerate(layers):
        where, found = Where(index, Layout.TOKENS, None, 0), read_layer(layer)
        attn = attention_places(f"blocks.{index}.attn", found, where, width)
        blocks.append(assembled(index, layer, found, attn, where, width, None))
    trunk, stage = outline.tower(blocks, start)
    length, vocabulary = int(config.max_position_embeddings), int(config.vocab_size)
    ends = config.eos_token_id
    known = ends if isinstance(ends, int) and 0 <= ends < vocabulary else vocabulary - 1
    # CLIP pools at the end token, of which old configurations state the number 2; SigLIP at the last of the row.
    causal = type(text).__name__.startswith("CLIP")
    last = (vocabulary - 1 if text.eos_token_id == 2 else int(text.eos_token_id)) if causal else None
    folder = str(getattr(config, "_name_or_path", ""))
    pooling, stated_pad = TextPooling(_pooler_output), config.pad_token_id
    pooled_width = int(text.head.out_features) if "head" in text._modules else width
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_text",
            library="transformers",
            architecture=architecture(model),
            image_size=(1, length),
            depth=depth,
            width=pooled_width,
            prefix_tokens=0,
            pooling="end of text",
        ),
        pixels=Site(
            name="pixels",
            width=1,
            enter=None,
            exit=None,
            verbs=frozenset(),
            layout=Layout.VECTOR,
            depth=-1,
        ),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", text.final_layer_norm, end, width),
        others=[
            *text_places(pooling.anchor, stem.token_embedding, width, int(causal), length),
            outline.embedding(
                Point(stem, "output"),
                Where(-1, Layout.TOKENS, None, 0),
                width,
                own={"pos_embed": (stem.position_embedding, "weight")},
            ),
        ],
        pooled=pooling,
        classifier=_no_classifier,
        inputs=TextSpec(
            (1, length),
            1,
            layout="tokens",
            names=("input_ids",),
            make=MadeUpTexts(vocabulary, length, known),
            start=int(causal),
            end=last,
            pad=stated_pad if isinstance(stated_pad, int) else 0,
            vocabulary=vocabulary,
            embedding=stem.token_embedding,
            tokenizer=HfTokenizer(folder, length) if folder else None,
        ),
        no_tokens="the mask of its attention is made for the length of the text",
    )


def _pooler_output(model: nn.Module, texts: Tensor) -> Tensor:
    pooled: Tensor = model(input_ids=texts).pooler_output
    return pooled


def _no_classifier(model: nn.Module) -> nn.Module:
    return nn.Identity()
