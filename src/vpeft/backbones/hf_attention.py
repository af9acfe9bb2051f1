"""Attention of transformers models with edits between q, k, v and their use, and with inserted tokens.

Every attention here asks its config which implementation to call with q, k, v and a mask. While an edit needs it, the
module's class is a subclass that names an implementation of ours, so the library's own forward stays the one that runs
(rotary positions, scaling, projections). That implementation edits q, k, v and then calls the one that the config
names: bit-equal to it without edits. transformers is imported when a model of it is described, not before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import VpeftError
from .causal_tokens import causal_mask, with_prompts

NAME = "vpeft"
EXACT = ("eager", "sdpa")
PREFIX = "Edited"
PLAIN = {
    "BeitAttention": "beit",
    "CLIPAttention": "clip",
    "DPTSelfAttention": "dpt",
    "DINOv3ViTAttention": "dinov3_vit",
    "DeiTAttention": "deit",
    "Dinov2Attention": "dinov2",
    "Dinov2WithRegistersAttention": "dinov2_with_registers",
    "EomtAttention": "eomt",
    "EomtDinov3Attention": "eomt_dinov3",
    "Idefics3VisionAttention": "idefics3",
    "RfDetrDinov2Attention": "rf_detr",
    "SegformerAttention": "segformer",
    "Siglip2Attention": "siglip2",
    "SiglipAttention": "siglip",
    "SmolVLMVisionAttention": "smolvlm",
    "SwinAttention": "swin",
    "ViTAttention": "vit",
    "ViTMAEAttention": "vit_mae",
    "VideoMAESelfAttention": "videomae",
    "VivitAttention": "vivit",
    "VJEPA2RopeAttention": "vjepa2",
}


class UneditableAttention(VpeftError):
    """The model runs an attention kernel that shows neither keys nor values to an edit."""


class Routed:
    """A model's config, but with our attention implementation."""

    _attn_implementation = NAME

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


class EditedAttention(nn.Module):
    """Mixed into a transformers attention: what it reads as its config routes its call through `edited_attention`."""

    plain: type[nn.Module]

    @property
    def config(self) -> Routed:
        return Routed(self.__dict__["config"])


def edited_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """q, k, v (B, heads, N, head width) -> (B, N, heads, head width), edited; and the weights where they are computed.

    Inserted tokens, and further keys, have no relative position (bias 0) and are open to every query.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    implementation = module.__dict__["config"]._attn_implementation
    if implementation not in EXACT:
        raise UneditableAttention(
            f"An edit acts between q, k and v, but the model runs the attention {implementation!r}. Use one of"
            f" {', '.join(EXACT)}: model.set_attn_implementation('sdpa')."
        )
    core: Any = module.__dict__.get("vpeft_core")
    carrier: Any = module.__dict__.get("vpeft_carrier")
    prompts = options.pop("vpeft_prompts", 0)
    if attention_mask is not None and prompts:
        attention_mask = with_prompts(attention_mask, prompts, query.shape[2] - attention_mask.shape[-2])
    elif attention_mask is not None and attention_mask.shape[-2] < query.shape[2]:
        attention_mask = opened(attention_mask, query.shape[2], carrier.prefix)
    count = key.shape[2]
    if core is not None:
        query, key, value = core(query, key, value)
    extra = key.shape[2] - count
    if attention_mask is not None and extra:  # further keys come first
        attention_mask = F.pad(attention_mask, (extra, 0), value=_open(attention_mask))
    elif extra and query.shape[2] > 1 and _causal(module, options):  # a kernel's own causal mask knows no further keys
        attention_mask = causal_mask(query.shape[2], count, extra, query.device)
    if core is None or not core.needs_map:
        kind: Any = type(module)
        eager = sys.modules[kind.plain.__module__].eager_attention_forward
        run = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
        attended: tuple[Tensor, Tensor | None] = run(module, query, key, value, attention_mask, **options)
        return attended
    if attention_mask is None and query.shape[2] > 1 and _causal(module, options):
        attention_mask = causal_mask(query.shape[2], count, 0, query.device)
    if key.shape[1] != query.shape[1]:  # heads that share keys and values
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    scaling, dropout = options.get("scaling"), options.get("dropout", 0.0)
    scores = core.scores(query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scaling is None else scaling))
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = core.weights(scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype))
    out = F.dropout(weights, dropout, module.training) @ value
    return out.transpose(1, 2).contiguous(), weights


def _causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether a token sees those before it alone, where the model gives no mask that says so."""
    stated = options.get("is_causal")
    return bool(getattr(module, "is_causal", False) if stated is None else stated)


def _open(mask: Tensor) -> float:
    """What a mask holds where a query sees a key."""
    return True if mask.dtype == torch.bool else 0.0


def opened(mask: Tensor, count: int, prefix: int) -> Tensor:
    """A mask or bias (..., N, N) of the tokens that the model knows -> (..., count, count), new ones after `prefix`."""
    known = mask.shape[-1]
    at = torch.arange(count, device=mask.device)
    new = (at >= prefix) & (at < prefix + count - known)
    at = torch.where(new, known, torch.where(at < prefix, at, at - (count - known)))
    padded = F.pad(mask, (0, 1, 0, 1), value=_open(mask))
    return padded[..., at[:, None], at]


def edited_class(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The class that stands in for an attention class of transformers; None for one that is not known here."""
    kind = vars(kind).get("plain", kind)  # a model that is described while it is edited
    name = kind.__name__
    if PLAIN.get(name) is None or kind.__module__ != f"transformers.models.{PLAIN[name]}.modeling_{PLAIN[name]}":
        return None
    found: type[nn.Module] = getattr(sys.modules[__name__], PREFIX + name)
    return found


def made_class(module: str, name: str, folder: str, mixin: type[nn.Module]) -> type[nn.Module]:
    """A subclass of the transformers class `name` in the models' `folder`, with `mixin` before it, kept in `module`.

    A forward of the mixin is taken as it is: transformers wraps that of a layer's subclass in its checkpointing.
    """
    plain = getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
    made = type(PREFIX + name, (mixin, plain), {"__module__": module, "__doc__": mixin.__doc__, "plain": plain})
    if "forward" in vars(mixin):
        made.forward = vars(mixin)["forward"]  # type: ignore[attr-defined]
    setattr(sys.modules[module], PREFIX + name, made)
    return made


def __getattr__(name: str) -> type[nn.Module]:
    """`EditedViTAttention` and its like, made when first asked for: a pickled model finds its classes here too."""
    plain_name = name.removeprefix(PREFIX)
    if plain_name == name or plain_name not in PLAIN:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, edited_attention)
    return made_class(__name__, plain_name, PLAIN[plain_name], EditedAttention)
