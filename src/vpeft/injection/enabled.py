"""Switching adapters: what it gives back, so that it can be undone."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

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
