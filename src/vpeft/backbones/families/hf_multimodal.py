"""Multimodal language models of transformers: Llava, Idefics3, SmolVLM and BLIP-2, with their three parts by name.

The towers are `vision` and `language`; `projector` is the part between them. Of Llava's vision tower those blocks are
places whose output the projector reads; what comes behind them changes nothing. BLIP-2's projector is the linear map
behind its Q-Former, which is a part too, `qformer`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..describe import UnknownBackbone, describe, family
from ..hf_model import architecture
from ..host import Towers
from ..shortened import shorten

MODELING = "transformers.models"


@family(
    "hf_multimodal",
    f"{MODELING}.llava.modeling_llava.LlavaForConditionalGeneration",
    f"{MODELING}.idefics3.modeling_idefics3.Idefics3ForConditionalGeneration",
    f"{MODELING}.smolvlm.modeling_smolvlm.SmolVLMForConditionalGeneration",
    f"{MODELING}.blip_2.modeling_blip_2.Blip2ForConditionalGeneration",
)
def describe_hf_multimodal(model: nn.Module) -> Backbone:
    """transformers' Llava, Idefics3, SmolVLM and BLIP-2: `vision`, `projector` and `language`."""
    host: Any = model
    inner = host if "language_model" in host._modules else host.model
    parts = inner._modules
    vision = next(parts[key] for key in ("vision_tower", "vision_model") if key in parts)
    language = next(parts[key] for key in ("language_model", "text_model") if key in parts)
    projector = next(
        key for key in ("multi_modal_projector", "connector", "language_projection") if parts.get(key) is not None
    )
    folder = str(getattr(host.config, "_name_or_path", ""))
    text: Any = getattr(language, "config", None)
    if folder and text is not None and not getattr(text, "_name_or_path", ""):
        text._name_or_path = folder  # the tokenizer lies beside the whole model
    tower, kind = describe(vision), type(model).__name__
    if "vision_feature_layer" in vars(host.config):
        tower = _as_read(tower, host.config.vision_feature_layer)
    try:
        words = describe(language)
    except UnknownBackbone:
        raise UnknownBackbone(
            f"The language model of this {kind} is a {type(language).__name__}; those of the kinds Llama, Mistral,"
            " Qwen2 and OPT are known."
        ) from None
    made = Towers(model, {"vision": tower, "language": words}, "hf_multimodal", architecture(model))
    prefix = "" if inner is host else "model."
    made.aliases = {"projector": f"{prefix}{projector}"}
    return made


def _as_read(tower: Backbone, layers: int | list[int]) -> Backbone:
    """The tower up to the last of the layers whose output the projector reads; -1 is the last, 0 the embedding."""
    depth = len(tower.blocks)
    listed = [layers] if isinstance(layers, int) else list(layers)
    return shorten(tower, max(1, *(layer if layer >= 0 else depth + 1 + layer for layer in listed)))
