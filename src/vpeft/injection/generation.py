"""Texts that a host generates with its own `generate`, under the adapter that is on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .mixed_precision import in_precision, mixed_precision
from .node import AdapterError

if TYPE_CHECKING:
    from .tuned_model import TunedModel


def generated(tuned: TunedModel, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What the host's own `generate` gives for these inputs, every step with the edits of the adapter that is on.

    Args:
        tuned: of a host that generates.
        inputs, named: as the host's `generate` takes them.

    Raises:
        AdapterError: the model generates nothing.
    """
    host = tuned.backbone
    make: Callable[..., Any] | None = getattr(host, "generate", None)
    if not callable(make):
        raise AdapterError(
            f"{type(host).__name__} has no `generate`. Tune a language model or a multimodal one, such as"
            " LlamaForCausalLM or LlavaForConditionalGeneration; create_backbone('host::hf:FOLDER') makes one."
        )
    before = [(module, module.training) for module in tuned.modules() if module.training]
    try:
        for module, _ in before:
            module.training = False
        # One pass around all steps: no other thread puts other tensors into the backbone in between.
        with tuned._pass(inputs, named), mixed_precision(host, tuned.adapters):
            return make(*in_precision(host, inputs), **named)
    finally:
        for module, mode in before:
            module.training = mode
