"""Temporary changes of a live model that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vpeft.injection.hooks import CoreEdits, PointHook
from vpeft.injection.tuned_model import TunedModel

_MIXED: dict[tuple[type, type], type[nn.Module]] = {}


def mixed(mixin: type, kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of `mixin` and `kind`; the same class for the same arguments."""
    if (mixin, kind) not in _MIXED:
        _MIXED[mixin, kind] = type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {})
    return _MIXED[mixin, kind]


def hooked(tuned: TunedModel) -> list[tuple[nn.Module, PointHook]]:
    """Return every hook that runs operations, with its module."""
    wiring = tuned._wiring
    modules = {id(module): module for module in wiring._modules}
    return [(modules[key[0]], hook) for key, (hook, _) in wiring._hooks.items()]


class Patches:
    """A list of changes to a tuned model, which `undo` reverts in reverse order."""

    def __init__(self, tuned: TunedModel) -> None:
        self.tuned = tuned
        self._back: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._back)

    def undo(self, down_to: int = 0) -> None:
        """Undo all changes after the first `down_to`."""
        while len(self._back) > down_to:
            self._back.pop()()
            self.tuned._rewritten -= not self._back

    def on_undo(self, back: Callable[[], None]) -> None:
        """Add a function that `undo` calls."""
        self.tuned._rewritten += not self._back
        self._back.append(back)

    def stand_in(self, module: nn.Module, mixin: type, **state: Any) -> None:
        """Put `mixin` before the module's class and `state` into its `__dict__`, which adds no state-dict keys."""
        plain = type(module)
        before = {name: module.__dict__[name] for name in state if name in module.__dict__}
        module.__class__ = mixed(mixin, plain)
        module.__dict__.update(state)

        def back() -> None:
            module.__class__ = plain
            for name in state:
                module.__dict__.pop(name, None)
            module.__dict__.update(before)

        self.on_undo(back)

    def note(self, module: nn.Module, **state: Any) -> None:
        """Put `state` into the module's `__dict__`, which adds no state-dict keys, and keep its class."""
        module.__dict__.update(state)

        def back() -> None:
            for name in state:
                module.__dict__.pop(name, None)

        self.on_undo(back)

    def become(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Change the module's class to `kind`, a subclass of its class."""
        plain = type(module)
        module.__class__ = kind

        def back() -> None:
            module.__class__ = plain

        self.on_undo(back)

    def exchange(self, listed: list[Any], old: Any, new: Any | None) -> None:
        """Replace the operation `old` in a list with `new`, or remove it."""
        before = list(listed)
        at = listed.index(old)
        listed[at : at + 1] = [] if new is None else [new]

        def back() -> None:
            listed[:] = before

        self.on_undo(back)

    def extend_core(self, module: nn.Module, kind: type[nn.Module], operation: Any) -> None:
        """Run `operation` on q, k and v; the attention module gets the class `kind` if it does not have it yet."""
        if type(module) is not kind:
            self.become(module, kind)
        if "vpeft_core" not in module.__dict__:
            module.__dict__["vpeft_core"] = CoreEdits(self.tuned._wiring.switch)
            self.on_undo(lambda: module.__dict__.pop("vpeft_core"))
        listed = module.__dict__["vpeft_core"].listed(operation.adapter)
        listed.append(operation)
        self.on_undo(lambda: listed.remove(operation))
