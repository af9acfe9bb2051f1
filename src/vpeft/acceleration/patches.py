"""Temporary changes to a live model, each with the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vpeft.injection.hooks import CoreEdits, PointHook
from vpeft.injection.tuned_model import TunedModel

_MIXED: dict[tuple[type, type], type[nn.Module]] = {}


def mixed(mixin: type, kind: type[nn.Module]) -> type[nn.Module]:
    """A class that runs `mixin` before `kind`; the same one each time."""
    if (mixin, kind) not in _MIXED:
        _MIXED[mixin, kind] = type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {})
    return _MIXED[mixin, kind]


def hooked(tuned: TunedModel) -> list[tuple[nn.Module, PointHook]]:
    """Every hook that carries operations, with the module that it sits on."""
    wiring = tuned._wiring
    modules = {id(module): module for module in wiring._modules}
    return [(modules[key[0]], hook) for key, (hook, _) in wiring._hooks.items()]


class Patches:
    """What was changed, so that it can be undone in reverse order."""

    def __init__(self, tuned: TunedModel) -> None:
        self.tuned = tuned
        self._back: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._back)

    def undo(self, down_to: int = 0) -> None:
        """Take back everything after the first `down_to` changes."""
        while len(self._back) > down_to:
            self._back.pop()()
            self.tuned._rewritten -= not self._back

    def on_undo(self, back: Callable[[], None]) -> None:
        """Remember one more step of the way back."""
        self.tuned._rewritten += not self._back
        self._back.append(back)

    def stand_in(self, module: nn.Module, mixin: type, **state: Any) -> None:
        """Let `mixin` stand before the module's class; `state` is put beside its attributes, where no key appears."""
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
        """Put `state` beside the module's attributes, where no key appears, for the class that it has."""
        module.__dict__.update(state)

        def back() -> None:
            for name in state:
                module.__dict__.pop(name, None)

        self.on_undo(back)

    def become(self, module: nn.Module, kind: type[nn.Module]) -> None:
        """Let the module be of the class `kind`, a subclass of its own."""
        plain = type(module)
        module.__class__ = kind

        def back() -> None:
            module.__class__ = plain

        self.on_undo(back)

    def exchange(self, listed: list[Any], old: Any, new: Any | None) -> None:
        """Put `new` where the operation `old` is listed, or nothing."""
        before = list(listed)
        at = listed.index(old)
        listed[at : at + 1] = [] if new is None else [new]

        def back() -> None:
            listed[:] = before

        self.on_undo(back)

    def extend_core(self, module: nn.Module, kind: type[nn.Module], operation: Any) -> None:
        """Run `operation` between q, k and v and their use; the attention is re-expressed where it is not yet."""
        if type(module) is not kind:
            self.become(module, kind)
        if "vpeft_core" not in module.__dict__:
            module.__dict__["vpeft_core"] = CoreEdits(self.tuned._wiring.switch)
            self.on_undo(lambda: module.__dict__.pop("vpeft_core"))
        listed = module.__dict__["vpeft_core"].listed(operation.adapter)
        listed.append(operation)
        self.on_undo(lambda: listed.remove(operation))
