"""Hooks that carry out edits: picklable objects, never closures, never a swapped `forward`.

One hook sits at each (module, side) that any edit needs, and runs the operations of the adapter that is on. Where a
hook cannot reach (between q, k and v, or at a weight), the module's class is the family's re-expression of it for as
long as an edit needs that; keys, tensors and `isinstance` stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.points import Point, StandIn
from .operations import Add, EditCore, EditWeight, Operation
from .switch import NotByImage, Switch


class Turn:
    """Which call of a module that runs several times is under way: told by the module that ran before it."""

    def __init__(self) -> None:
        self.now = -1


class Mark:
    """A forward pre-hook on what runs before the `call`-th call of another module."""

    def __init__(self, turn: Turn, call: int) -> None:
        self.turn, self.call = turn, call

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.turn.now = self.call


class PointHook:
    """Runs the operations at one point, outer spans first on the way in and last on the way out."""

    def __init__(self, switch: Switch, point: Point, turn: Turn | None = None) -> None:
        self.switch, self.item, self.side = switch, point.item, point.side
        self.turn, self.call = turn, point.call
        # What these give is a new tensor, which nobody holds before the first hook.
        self.makes_new = self.side == "output" and isinstance(point.module, (nn.Linear, nn.Conv2d))
        self.operations: list[Operation] = []

    def add(self, operation: Operation) -> None:
        """Insert in nesting order; among equals in order of arrival, but what leaves goes out in reverse order."""
        rank = operation.rank if self.side == "input" else -operation.rank
        keys = [o.rank if self.side == "input" else -o.rank for o in self.operations]
        if operation.leaving:  # before everything of its rank: the last to enter is the first to leave
            at = next((i for i, key in enumerate(keys) if key >= rank), len(keys))
        else:
            at = next((i for i, key in enumerate(keys) if key > rank), len(keys))
        self.operations.insert(at, operation)

    @property
    def waits(self) -> bool:
        """Whether this is another call of the module than the one that is meant."""
        return self.turn is not None and self.turn.now != self.call

    def run(self, hidden: Tensor) -> Tensor:
        self.switch.mark()
        if self.switch.idle:
            return hidden
        return self.switch.by_image(self._act, hidden)[0]

    def _act(self, hidden: Tensor) -> tuple[Tensor]:
        running = [operation for operation in self.operations if self.switch.runs(operation)]
        # With no graph to keep it for, what is added can be added where the output lies.
        here = self.makes_new and not torch.is_grad_enabled() and all(isinstance(one, Add) for one in self.operations)
        for operation in running:
            hidden = operation.into(hidden) if here else operation.act(hidden)
        return (hidden,)


class InputHook(PointHook):
    """A forward pre-hook."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.waits:
            return args, kwargs
        if isinstance(self.item, str) and self.item in kwargs:
            return args, {**kwargs, self.item: self.run(kwargs[self.item])}
        at = self.item if isinstance(self.item, int) else 0
        return (*args[:at], self.run(args[at]), *args[at + 1 :]), kwargs


class OutputHook(PointHook):
    """A forward hook."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.waits:
            return output
        if isinstance(output, tuple) and isinstance(self.item, int):
            return (*output[: self.item], self.run(output[self.item]), *output[self.item + 1 :])
        return self.run(output)


class WeightEdits:
    """What a re-expressed linear or convolution calls with its weight."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.operations: list[EditWeight] = []

    def __call__(self, weight: Tensor) -> Tensor:
        self.switch.mark()
        shares = self.switch.shares
        for operation in self.operations:
            if shares is not None and shares.has(operation.adapter):
                raise NotByImage("An edit of a weight acts on all images of a batch.")
            if self.switch.runs(operation):
                weight = operation.act(weight)
        return weight


class CoreEdits:
    """What a re-expressed attention calls with q, k and v."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.operations: list[EditCore] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        self.switch.mark()
        return self.switch.by_image(self._act, q, k, v)

    def _act(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for operation in self.operations:
            if self.switch.runs(operation):
                q, k, v = operation.act(q, k, v)
        return q, k, v

    @property
    def asking(self) -> int | None:
        """How many leading tokens alone are queries, where nothing else is done to q, k and v; None for all of them."""
        shares = self.switch.shares
        on = [self.switch.on] if shares is None else [name for name, _ in shares.counts]
        asked = {self._asking(name) for name in on}
        return asked.pop() if len(asked) == 1 else None

    def _asking(self, adapter: str | None) -> int | None:
        running = [operation for operation in self.operations if operation.adapter == adapter]
        return running[0].asking if len(running) == 1 else None

    @property
    def needs_map(self) -> bool:
        """Whether an edit that is on wants the attention map itself, which a fused kernel never shows."""
        return any(
            (operation.edits("scores") or operation.edits("weights")) and self.switch.plays(operation.adapter)
            for operation in self.operations
        )

    def scores(self, scores: Tensor) -> Tensor:
        """Scaled products of queries and keys, before bias and mask."""
        return self.switch.by_image(partial(self._mapped, "scores"), scores)[0]

    def weights(self, weights: Tensor) -> Tensor:
        """The softmax of the scores, before dropout."""
        return self.switch.by_image(partial(self._mapped, "weights"), weights)[0]

    def _mapped(self, step: str, values: Tensor) -> tuple[Tensor]:
        for operation in self.operations:
            if operation.adapter == self.switch.on and operation.edits(step):
                values = getattr(operation.layer, step)(values)
        return (values,)


class Wiring:
    """All that is installed on the live model, and the way to take any of it off again."""

    def __init__(self) -> None:
        self.switch = Switch()
        self._hooks: dict[tuple[int, str, int | str, int], tuple[PointHook, list[RemovableHandle]]] = {}
        self._modules: list[nn.Module] = []
        self._classes: dict[int, tuple[nn.Module, type[nn.Module], list[str]]] = {}
        self._attached: list[tuple[str, list[Any], Any]] = []  # adapter, where it is listed, operation

    def operations(self, adapter: str) -> list[Any]:
        """Every operation of one adapter."""
        return [operation for name, _, operation in self._attached if name == adapter]

    def at(self, point: Point, operation: Operation) -> None:
        """Install an operation at a point, with what must stand in for the point to be passed."""
        self.express(point.needs, operation.adapter)
        key = (id(point.module), point.side, point.item, point.call)
        if key not in self._hooks:
            self._modules.append(point.module)
            turn = Turn() if point.calls else None
            handles = [
                module.register_forward_pre_hook(Mark(turn, number))
                for number, module in enumerate(point.calls)
                if turn is not None
            ]
            made: PointHook
            if point.side == "input":
                made = entering = InputHook(self.switch, point, turn)
                handles.append(point.module.register_forward_pre_hook(entering, with_kwargs=True))
            else:
                made = leaving = OutputHook(self.switch, point, turn)
                # before the hooks of others: a library that collects its hidden states shall collect edited ones
                handles.append(point.module.register_forward_hook(leaving, prepend=True))
            self._hooks[key] = (made, handles)
        hook = self._hooks[key][0]
        hook.add(operation)
        self._attached.append((operation.adapter, hook.operations, operation))

    def weight(self, module: nn.Module, kind: type[nn.Module], operation: EditWeight) -> None:
        """Install an edit of a module's weight."""
        edits = self._rewrite(module, kind, operation.adapter, "vpeft_weight", WeightEdits)
        edits.operations.append(operation)
        self._attached.append((operation.adapter, edits.operations, operation))

    def core(self, module: nn.Module, kind: type[nn.Module], operation: EditCore) -> None:
        """Install an edit between q, k, v and their use."""
        edits = self._rewrite(module, kind, operation.adapter, "vpeft_core", CoreEdits)
        edits.operations.append(operation)
        self._attached.append((operation.adapter, edits.operations, operation))

    def express(self, needs: tuple[StandIn, ...], adapter: str) -> None:
        """Let classes stand in for those of modules, together with the anchors that they call."""
        for need in needs:
            self._use(need.module, need.kind, adapter)
            need.module.__dict__.update(need.anchors)

    def carry(self, module: nn.Module, kind: type[nn.Module], adapter: str, carrier: Any) -> None:
        """Let a module carry inserted tokens."""
        self._use(module, kind, adapter)
        module.__dict__["vpeft_carrier"] = carrier

    def _rewrite(self, module: nn.Module, kind: type[nn.Module], adapter: str, name: str, make: type[Any]) -> Any:
        self._use(module, kind, adapter)
        if name not in module.__dict__:
            module.__dict__[name] = make(self.switch)
        return module.__dict__[name]

    def _use(self, module: nn.Module, kind: type[nn.Module], adapter: str) -> None:
        if id(module) in self._classes:
            assert type(module) is kind, f"{type(module).__name__} already stands in where {kind.__name__} should"
            self._classes[id(module)][2].append(adapter)
            return
        self._classes[id(module)] = (module, type(module), [adapter])
        module.__class__ = kind
        module.__dict__["vpeft_switch"] = self.switch  # for classes that step aside while no adapter is on

    def remove(self, adapter: str) -> None:
        """Take off everything of one adapter; hooks and classes that nothing else needs go with it."""
        for name, listed, operation in self._attached:
            if name == adapter:
                listed.remove(operation)
        self._attached = [entry for entry in self._attached if entry[0] != adapter]
        for key, (hook, handles) in list(self._hooks.items()):
            if not hook.operations:
                for handle in handles:
                    handle.remove()
                del self._hooks[key]
        for identity, (module, plain, users) in list(self._classes.items()):
            users[:] = [user for user in users if user != adapter]
            if not users:
                module.__class__ = plain
                for name in [name for name in module.__dict__ if name.startswith("vpeft_")]:
                    del module.__dict__[name]
                del self._classes[identity]

    def __deepcopy__(self, memo: dict[int, Any]) -> Wiring:
        """A copy whose bookkeeping points at the copied modules (ids change, so the keys are made anew)."""
        from copy import deepcopy

        twin = Wiring.__new__(Wiring)
        memo[id(self)] = twin
        state = deepcopy(self.__getstate__(), memo)
        twin.__setstate__(state)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        modules = {id(m): m for m in self._modules}
        return {
            "switch": self.switch,
            "hooks": [(modules[key[0]], key[1:], *held) for key, held in self._hooks.items()],
            "classes": list(self._classes.values()),
            "attached": self._attached,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.switch = state["switch"]
        self._modules = [module for module, *_ in state["hooks"]]
        self._hooks = {(id(module), *rest): (hook, handles) for module, rest, hook, handles in state["hooks"]}
        self._classes = {id(module): (module, plain, users) for module, plain, users in state["classes"]}
        self._attached = state["attached"]
