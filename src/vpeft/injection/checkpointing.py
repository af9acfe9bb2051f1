"""Reentrant activation checkpointing, which trains nothing where no gradient enters: said instead of suffered."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch.utils.checkpoint import CheckpointFunction

from .forward_pass import ForwardPass
from .node import AdapterError

_REENTRANT = CheckpointFunction.forward.__code__


class ReentrantCheckpoint(AdapterError):
    """A block with trained parameters runs in a reentrant checkpoint that no gradient enters."""


def refuse_reentrant(now: ForwardPass, lists: Mapping[str, Sequence[Any]]) -> None:
    """Raise `ReentrantCheckpoint` if trained parameters are about to run where they can receive no gradient.

    Args:
        now: the pass, in which gradients were recorded outside, though not here.
        lists: the operations here, by adapter.
    """
    if now.shares is None:
        names = [] if now.on is None else [now.on]
    else:
        names = [name for name, _ in now.shares.counts if name is not None]
    for operation in (operation for name in names for operation in lists.get(name, ())):
        layer = getattr(operation, "layer", None)
        if layer is not None and any(parameter.requires_grad for parameter in layer.parameters()):
            refuse_untrained()
            return


def refuse_untrained() -> None:
    """Raise `ReentrantCheckpoint` if a reentrant checkpoint without inputs that need a gradient is being run."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _REENTRANT:
            if any(frame.f_locals["ctx"].needs_input_grad):
                return
            _refuse()
        frame = frame.f_back


def _refuse() -> NoReturn:
    raise ReentrantCheckpoint(
        "The backbone's activation checkpointing is of the reentrant kind, and no gradient enters the block that it"
        " runs, so the adapter's tensors inside would not train. Turn it on with use_reentrant=False, for instance by"
        " model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})."
    )
