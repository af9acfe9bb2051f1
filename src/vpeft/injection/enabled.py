"""Switching adapters: for everybody, or in a `with` for the present thread or task alone; what training needs on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from .forward_pass import Choice
from .node import AdapterError

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class Enabled:
    """What `enable` returns.

    As a statement it switches for everybody; as a `with` for the present thread or task alone, and back at its end.
    Nobody can tell the two apart before the `with` begins, so until this object is gone or its `with` begins, only the
    thread that made it sees the switch.
    """

    def __init__(self, tuned: TunedModel, choice: Choice) -> None:
        switch = tuned._wiring.switch
        self._tuned, self._choice = tuned, choice
        self._before = switch.override()
        self._proposed = switch.propose(choice, self)

    def __enter__(self) -> TunedModel:
        switch = self._tuned._wiring.switch
        switch.withdraw(self._proposed)
        self._proposed = None
        switch.set_override(self._choice)
        self._tuned._stand_in()
        return self._tuned

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._before
        if before is not None and before.name is not None and before.name not in self._tuned.adapters:
            before = Choice(None, before.route)
        self._tuned._wiring.switch.set_override(before)
        self._tuned._stand_in()


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


Given = ParamSpec("Given")
Gives = TypeVar("Gives")


def beside_no_pass(
    change: Callable[Concatenate[TunedModel, Given], Gives],
) -> Callable[Concatenate[TunedModel, Given], Gives]:
    """Let a change of the model wait for the forward passes of other threads to end, and hold theirs up until it ends.

    It raises `AdapterError` if a pass of the present thread itself is under way.
    """

    @wraps(change)
    def alone(tuned: TunedModel, /, *given: Given.args, **named: Given.kwargs) -> Gives:
        guard = tuned._wiring.switch.guard
        if guard.runs_here:
            raise AdapterError(f"`{change.__name__}` was called inside a forward pass of the model it would change.")
        with guard.alone():
            return change(tuned, *given, **named)

    return alone
