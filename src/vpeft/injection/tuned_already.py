"""One TunedModel at a time on a model: a second one is refused, and one that is gone leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import nn

from .adapter import Adapter
from .hooks import Begin, ByAdapter, Mark, Watch, Wiring
from .merge import Merged
from .node import AdapterError

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class TunedAlready(AdapterError):
    """The model carries the adapters of another TunedModel."""


def refuse_tuned(model: nn.Module) -> None:
    """Raise `TunedAlready` if a living TunedModel acts on this model or on a part of it."""
    if any(_traces(model)):
        gc.collect()  # a TunedModel that nobody holds takes its hooks off
        if not any(_traces(model)):
            return
        raise TunedAlready(
            f"Another TunedModel acts on this {type(model).__name__} already, and a second one would start from its"
            " output. Add an adapter to the first, tuned.attach(method, num_classes=..., name=...) or"
            " vpeft.load(tuned, path, name=...); or take its adapters off, tuned.detach(); or take a fresh model."
        )


def clean_up_after(tuned: TunedModel) -> None:
    """Let the hooks and stand-ins of `tuned` leave the backbone when `tuned` is gone.

    Merged weights, and weights that were trained in place, stay as they are.
    """
    ending = weakref.finalize(tuned, _ended, tuned.backbone, tuned._wiring, tuned.adapters, tuned._merged, tuned._flags)
    ending.atexit = False


def _ended(
    backbone: nn.Module, wiring: Wiring, adapters: nn.ModuleDict, merged: dict[str, Merged], flags: Sequence[bool]
) -> None:
    if not adapters:
        return  # all were detached, and the backbone may be another TunedModel's by now
    for name, adapter in adapters.items():
        assert isinstance(adapter, Adapter)
        if name not in merged:
            adapter.switch(False)
        wiring.remove(name)
    for parameter, flag in zip(backbone.parameters(), flags, strict=False):
        parameter.requires_grad_(flag)


def _traces(model: nn.Module) -> Iterator[bool]:
    """Whether each hook and each module is one of ours, at work."""
    for module in model.modules():
        yield "vpeft_switch" in module.__dict__
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            yield isinstance(hook, (Begin, ByAdapter, Mark, Watch))
