"""Language models of transformers with edits between q, k, v and their use, with prompts, and with a key-value cache.

As in `hf_attention`, the library's own forward stays the one that runs. The attention's keys come out of the cache
before they are edited, so that further keys (prefixes) are put before all of them in every pass and lie in no cache.
"""

from __future__ import annotations

import importlib
import sys
from inspect import signature
from typing import Any

from torch import Tensor, nn

from .hf_attention import NAME, PREFIX, EditedAttention, edited_attention, made_class

ATTENTIONS = {
    "LlamaAttention": "llama",
    "MistralAttention": "mistral",
    "OPTAttention": "opt",
    "Qwen2Attention": "qwen2",
}
MODELS = {
    "LlamaModel": "llama",
    "MistralModel": "mistral",
    "OPTDecoder": "opt",
    "Qwen2Model": "qwen2",
}


class EditedCausalAttention(EditedAttention):
    """Mixed into an attention of a language model: where tokens are inserted, their carrier runs it."""

    def forward(self, hidden_states: Tensor, *more: Any, **named: Any) -> Any:
        carrier: Any = self.__dict__.get("vpeft_carrier")
        plain: Any = self.plain
        if carrier is None:
            return plain.forward(self, hidden_states, *more, **named)
        given = signature(plain.forward).bind(self, hidden_states, *more).arguments if more else {}
        options = dict(list(given.items())[2:])
        return carrier.attend(self, hidden_states, {**options, **named})


class EditedLanguageModel(nn.Module):
    """Mixed into a language model: it tells the carrier of inserted tokens what it reads."""

    plain: type[nn.Module]

    def forward(self, *given: Any, **named: Any) -> Any:
        carrier: Any = self.__dict__.get("vpeft_carrier")
        plain: Any = self.plain
        if carrier is not None:
            known = dict(signature(plain.forward).bind_partial(self, *given).arguments) | named
            read: Any = known.get("inputs_embeds")
            read = known.get("input_ids") if read is None else read
            cache = known.get("cache")
            carrier.begin(int(read.shape[1]), known.get("past_key_values") if cache is None else cache)
        return plain.forward(self, *given, **named)


def edited_language_class(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The class that stands in for an attention or a language model of transformers; None for one not known here."""
    kind = vars(kind).get("plain", kind)
    name = kind.__name__
    folder = ATTENTIONS.get(name) or MODELS.get(name)
    if folder is None or kind.__module__ != f"transformers.models.{folder}.modeling_{folder}":
        return None
    found: type[nn.Module] = getattr(sys.modules[__name__], PREFIX + name)
    return found


def _record_as_plain(made: type[nn.Module]) -> None:
    """Let the library collect hidden states of a stand-in as of its plain class: it looks them up by the class."""
    for place in ("output_capturing", "generic"):  # where versions of transformers keep the list
        try:
            module = importlib.import_module(f"transformers.utils.{place}")
        except ImportError:
            continue
        known = getattr(module, "_CAN_RECORD_REGISTRY", None)
        if isinstance(known, dict):
            dict.__setitem__(known, str(made), getattr(made, "_can_record_outputs", None))


def __getattr__(name: str) -> type[nn.Module]:
    """`EditedLlamaAttention` and its like, made when first asked for; a pickled model finds them here."""
    plain = name.removeprefix(PREFIX)
    if plain == name or plain not in ATTENTIONS | MODELS:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    if plain in MODELS:
        made = made_class(__name__, plain, MODELS[plain], EditedLanguageModel)
        _record_as_plain(made)
        return made
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, edited_attention)
    return made_class(__name__, plain, ATTENTIONS[plain], EditedCausalAttention)
