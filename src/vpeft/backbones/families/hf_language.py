"""Causal language models of transformers: Llama, Mistral, Qwen2 and the decoder of OPT; tokens in, one feature out.

The blocks are those of every family; the feature is that of the last token. Prompts stand in front of the text, and
generation with a key-value cache computes them once, see `vpeft.backbones.causal_tokens`. Where heads share keys and
values, the heads of `attn.core` are those of the keys. `image_size` is (1, L), no place has a grid and `pixels` offers
nothing, as in every text tower.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, norm, projection, site, token_rewrites
from ..causal_tokens import CausalCarrier
from ..describe import UnknownBackbone, family
from ..hf_language import edited_language_class
from ..hf_model import architecture
from ..hf_reading import GATED
from ..inputs import MadeUpTexts
from ..places import Place, Projection, Site
from ..points import Layout, Point
from ..texts import HfTokenizer, TextPooling, TextSpec, text_places

MODELING = "transformers.models"
# As many made-up tokens are enough to look whether every edit has an effect.
EXAMPLE = 8


@family(
    "hf_language",
    f"{MODELING}.llama.modeling_llama.LlamaModel",
    f"{MODELING}.mistral.modeling_mistral.MistralModel",
    f"{MODELING}.qwen2.modeling_qwen2.Qwen2Model",
    f"{MODELING}.opt.modeling_opt.OPTDecoder",
)
def describe_hf_language(model: nn.Module) -> Backbone:
    """transformers' causal language models Llama, Mistral, Qwen2 and OPT, alone or inside of a larger model."""
    language: Any = model
    config, layers = language.config, language.layers
    width, depth = int(config.hidden_size), len(layers)
    carrier = CausalCarrier(language._modules.get("rotary_emb"))
    kinds = edited_language_class(type(model))
    start, end = Where(0, Layout.TOKENS, None, 0), Where(depth, Layout.TOKENS, None, 0)
    blocks = []
    for index, layer in enumerate(layers):
        block = _block(index, layer, Where(index, Layout.TOKENS, None, 0), width, carrier)
        inner = edited_language_class(type(layer.self_attn))
        pairs = ((model, kinds), (layer.self_attn, inner))
        block.rewrites = token_rewrites(tuple((module, kind) for module, kind in pairs if kind is not None))
        blocks.append(block)
    trunk, stage = outline.tower(blocks, start)
    final = language._modules.get("norm", language._modules.get("final_layer_norm"))
    vocabulary, length = int(config.vocab_size), int(config.max_position_embeddings)
    positions = language._modules.get("embed_positions")
    own: dict[str, tuple[nn.Module, str]] = {"words": (language.embed_tokens, "weight")}
    if positions is not None:
        own["pos_embed"] = (positions, "weight")
    folder, pad = str(getattr(config, "_name_or_path", "")), config.pad_token_id
    pooling = TextPooling(_last_token)
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_language",
            library="transformers",
            architecture=architecture(model),
            image_size=(1, length),
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling="last token",
        ),
        pixels=Site(name="pixels", width=1, enter=None, exit=None, verbs=frozenset(), layout=Layout.VECTOR, depth=-1),
        trunk=trunk,
        stages=[stage],
        norm=None if final is None else norm("norm", final, end, width),
        others=[
            *text_places(pooling.anchor, language.embed_tokens, int(language.embed_tokens.embedding_dim), 0, length),
            outline.embedding(Point(layers[0], "input"), Where(-1, Layout.TOKENS, None, 0), width, own=own, nesting=-1),
        ],
        pooled=pooling,
        classifier=_no_classifier,
        inputs=TextSpec(
            (1, length),
            1,
            layout="tokens",
            names=("input_ids",),
            make=MadeUpTexts(vocabulary, min(EXAMPLE, length), vocabulary - 1),
            start=0,
            end=None,
            pad=pad if isinstance(pad, int) else 0,
            vocabulary=vocabulary,
            embedding=language.embed_tokens,
            tokenizer=HfTokenizer(folder, length) if folder else None,
        ),
    )


def _block(index: int, layer: Any, where: Where, width: int, carrier: CausalCarrier) -> Block:
    name, attention = f"blocks.{index}", layer.self_attn
    inner: dict[str, Place] = {
        letter: projection(f"{name}.attn.{letter}", attention._modules[f"{letter}_proj"], where) for letter in "qkv"
    }
    inner["proj"] = projection(
        f"{name}.attn.proj", attention._modules.get("o_proj", attention._modules.get("out_proj")), where
    )
    kind = edited_language_class(type(attention))
    if kind is not None:
        keys = inner["k"].width
        heads = keys // int(attention.head_dim)
        inner["core"] = attention_core(f"{name}.attn.core", attention, kind, where, keys, heads)
    readers: tuple[Projection, ...] = tuple(inner[letter] for letter in "qkv")  # type: ignore[misc]
    attn = site(
        f"{name}.attn",
        AttentionSite,
        Point(attention, "input", "hidden_states"),
        Point(attention, "output"),
        where,
        width,
        inner,
        None,
        readers,
    )
    mlp, norms = _mlp(f"{name}.mlp", layer, where, width)
    halves = [
        outline.Residual(inside, Point(around, "input"), leaves, around, inside.consumers, writer)
        for inside, around, leaves, writer in (
            (attn, norms[0], Point(attention, "output"), attn.proj),
            (mlp, norms[1], mlp.exit, mlp.fc2),
        )
        if leaves is not None
    ]
    return outline.residual_pair(index, layer, halves, where, width, carrier=carrier)


def _mlp(name: str, layer: Any, where: Where, width: int) -> tuple[MlpSite, tuple[nn.Module, nn.Module]]:
    """The MLP as a place, and the norms of the two branches."""
    found = layer._modules.get("mlp")
    if found is not None:
        named = {ours: found._modules[theirs] for theirs, ours in GATED.items()}
        ends = Point(found, "input"), Point(found, "output")
        norms = layer.input_layernorm, layer.post_attention_layernorm
    else:  # OPT's two linears are the layer's own, and pass tokens of all texts as rows
        if not layer.do_layer_norm_before:
            raise UnknownBackbone(
                "This OPT has its norms behind its sums (opt-350m); places are known for those with norms before them."
            )
        named = {"fc1": layer.fc1, "fc2": layer.fc2}
        ends = Point(layer.fc1, "input"), Point(layer.fc2, "output")
        norms = layer.self_attn_layer_norm, layer.final_layer_norm
    inside: dict[str, Place] = {key: projection(f"{name}.{key}", module, where) for key, module in named.items()}
    readers = tuple(place for key, place in inside.items() if key != "fc2" and isinstance(place, Projection))
    return site(name, MlpSite, *ends, where, width, inside, None, readers), norms


def _last_token(model: nn.Module, texts: Tensor) -> Tensor:
    hidden: Tensor = model(input_ids=texts).last_hidden_state
    return hidden[:, -1]


def _no_classifier(model: nn.Module) -> nn.Module:
    return nn.Identity()
