"""Switching adapters: what it gives back, so that it can be undone, and what must be on for training."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from .node import AdapterError

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class Enabled:
    """What `enable` returns: leaving its `with` restores the adapter that was on before."""

    def __init__(self, tuned: TunedModel, previous: tuple[str | None, tuple[str, ...] | None]) -> None:
        self._tuned, self._previous = tuned, previous

    def __enter__(self) -> TunedModel:
        return self._tuned

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name, route = self._previous
        self._tuned._route = route
        self._tuned._activate(name if name is not None and name in self._tuned.adapters else None)


def begin_training(tuned: TunedModel) -> None:
    """Make sure that one adapter is on and acts, as what trains it expects; graphs from before are given up.

    Raises:
        AdapterError: none is on, several are, or it is merged: its tensors would receive no gradient.
    """
    name = tuned.adapter().name
    if tuned._route is not None:
        several = ", ".join(dict.fromkeys(tuned._route))
        raise AdapterError(f"Several adapters are on ({several}). Enable the one to train.")
    if name in tuned._merged:
        raise AdapterError(f"Adapter {name!r} is merged into the weights and cannot be trained. Unmerge it first.")
    tuned._wiring.switch.forget()
