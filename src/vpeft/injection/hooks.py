"""Hooks that carry out edits: picklable objects, never closures, never a swapped `forward`.

One hook sits at each (module, side) that any edit needs, and runs the operations of the adapter that is on. Where a
hook cannot reach (between q, k and v, or at a weight), the module's class is the family's re-expression of it for as
long as an edit needs that; keys, tensors and `isinstance` stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..backbones.points import Point, StandIn
from .checkpointing import refuse_reentrant, refuse_untrained
from .forward_pass import Cell, ForwardPass
from .operations import Add, EditCore, EditWeight, Operation
from .run_time_grid import images_size
from .switch import NotByImage, Switch


class Turn(Cell):
    """Which call of a module that runs several times is under way: told by the module that ran before it."""


class Mark:
    """A forward pre-hook on what runs before the `call`-th call of another module."""

    def __init__(self, switch: Switch, turn: Turn, call: int) -> None:
        self.switch, self.turn, self.call = switch, turn, call

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.switch.present.count(self.turn, self.call)


class Begin:
    """A forward pre-hook where images enter: outside of the model's own forward call, a pass begins here."""

    def __init__(self, switch: Switch, item: int | str, time_axis: int | None) -> None:
        self.switch, self.item, self.time_axis = switch, item, time_axis

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = isinstance(self.item, str) and self.item in kwargs
        at = self.item if isinstance(self.item, int) else 0
        inputs = kwargs[self.item] if named else args[at] if at < len(args) else None  # type: ignore[index]
        self.switch.enter(images_size(inputs, self.time_axis))


class CountFrames:
    """A forward pre-hook where the frames of clips (B, C, T, H, W) part: layers are told T."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.switch.present.count(self.switch.frames, int(args[0].shape[2]))


Op = TypeVar("Op")


class ByAdapter(Generic[Op]):
    """Operations by the adapter that they belong to, so that those of adapters that are off cost nothing."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Op]] = {}

    def listed(self, adapter: str) -> list[Op]:
        """The list of one adapter's operations, which may be changed."""
        return self.lists.setdefault(adapter, [])

    @property
    def operations(self) -> list[Op]:
        """The operations of all adapters."""
        return [operation for listed in self.lists.values() for operation in listed]

    def acting(self, now: ForwardPass) -> frozenset[str]:
        """Those of several adapters with images in the batch that have an operation here; none while one serves it."""
        if now.shares is None:
            return frozenset()
        return frozenset(name for name, _ in now.shares.counts if name is not None and self.lists.get(name))

    def forget(self, adapter: str) -> None:
        """The adapter is gone."""
        self.lists.pop(adapter, None)


class PointHook(ByAdapter[Operation]):
    """Runs the operations at one point, outer spans first on the way in and last on the way out."""

    def __init__(self, switch: Switch, point: Point, turn: Turn | None = None) -> None:
        super().__init__()
        self.switch, self.item, self.side = switch, point.item, point.side
        self.turn, self.call = turn, point.call
        # What these give is a new tensor, which nobody holds before the first hook.
        self.makes_new = self.side == "output" and isinstance(point.module, (nn.Linear, nn.Conv2d, nn.Conv3d))

    def add(self, operation: Operation) -> None:
        """Insert in nesting order; among equals in order of arrival, but what leaves goes out in reverse order."""
        listed = self.listed(operation.adapter)
        rank = operation.rank if self.side == "input" else -operation.rank
        keys = [o.rank if self.side == "input" else -o.rank for o in listed]
        if operation.leaving:  # before everything of its rank: the last to enter is the first to leave
            at = next((i for i, key in enumerate(keys) if key >= rank), len(keys))
        else:
            at = next((i for i, key in enumerate(keys) if key > rank), len(keys))
        listed.insert(at, operation)

    def acts(self, now: ForwardPass) -> bool:
        """Whether an adapter that is on has an operation here, at this call of the module."""
        here = self.acting(now) if now.shares is not None else now.on is not None and self.lists.get(now.on)
        if not here:
            return False
        return self.turn is None or now.counted(self.turn) == self.call

    def run(self, now: ForwardPass, module: nn.Module, hidden: Tensor) -> Tensor:
        if now.gradient and module.training and not torch.is_grad_enabled():
            refuse_reentrant(now, self.lists)
        return self.switch.by_image(now, partial(self._act, now), self.acting(now), hidden)[0]

    def _act(self, now: ForwardPass, hidden: Tensor) -> tuple[Tensor]:
        running = self.lists.get(now.on) if now.on is not None else None
        if not running:
            return (hidden,)
        if self.switch.watched is not None:
            self.switch.watched.extend(running)
        # With no graph to keep it for, what is added can be added where the output lies.
        here = self.makes_new and not torch.is_grad_enabled() and all(isinstance(one, Add) for one in running)
        kind = hidden.dtype
        for operation in running:
            hidden = operation.into(hidden) if here else operation.act(hidden)
        return (hidden.to(kind) if self.switch.keeps_precision else hidden,)


class InputHook(PointHook):
    """A forward pre-hook."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self.switch.present
        if not self.acts(now):
            return None
        if isinstance(self.item, str) and self.item in kwargs:
            return args, {**kwargs, self.item: self.run(now, module, kwargs[self.item])}
        at = self.item if isinstance(self.item, int) else 0
        return (*args[:at], self.run(now, module, args[at]), *args[at + 1 :]), kwargs


class OutputHook(PointHook):
    """A forward hook."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        now = self.switch.present
        if not self.acts(now):
            return None
        if isinstance(output, tuple) and isinstance(self.item, int):
            at = self.item
            return (*output[:at], self.run(now, module, output[at]), *output[at + 1 :])
        return self.run(now, module, output)


class WeightEdits(ByAdapter[EditWeight]):
    """What a re-expressed linear or convolution calls with its weight."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

    def __call__(self, weight: Tensor) -> Tensor:
        now = self.switch.present
        if now.shares is not None and any(name is not None and self.lists.get(name) for name, _ in now.shares.counts):
            raise NotByImage("An edit of a weight acts on all images of a batch.")
        return self._edited(now, weight)

    @property
    def by_image(self) -> bool:
        """Whether images of the present pass have weights of their own here, so that `each` is to be called."""
        now = self.switch.present
        return now.shares is not None and not torch.is_grad_enabled() and bool(self.acting(now))

    def each(self, function: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, weight: Tensor) -> Tensor:
        """function(rows, weight) with the weight that each adapter makes for its own rows of `hidden`."""
        now = self.switch.present
        acting = self.acting(now)

        def written(rows: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
            return rows, out.copy_(function(rows, self._edited(now, weight)))

        if now.shares is not None and all(name in acting for name, _ in now.shares.counts):
            return self.switch.by_image(now, lambda rows: (function(rows, self._edited(now, weight)),), acting, hidden)[
                0
            ]
        return self.switch.by_image(now, written, acting, hidden, function(hidden, weight))[1]

    def _edited(self, now: ForwardPass, weight: Tensor) -> Tensor:
        """The weight as the adapter makes it that is on."""
        running = self.lists.get(now.on) if now.on is not None else None
        if not running:
            return weight
        if now.gradient and not torch.is_grad_enabled():
            refuse_reentrant(now, self.lists)
        if self.switch.watched is not None:
            self.switch.watched.extend(running)
        kind = weight.dtype
        for operation in running:
            weight = operation.act(weight)
        return weight.to(kind) if self.switch.keeps_precision else weight


class CoreEdits(ByAdapter[EditCore]):
    """What a re-expressed attention calls with q, k and v."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        now = self.switch.present
        if now.gradient and not torch.is_grad_enabled():
            refuse_reentrant(now, self.lists)
        return self.switch.by_image(now, partial(self._act, now), self.acting(now), q, k, v)

    def _act(self, now: ForwardPass, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        running = (self.lists.get(now.on) if now.on is not None else None) or ()
        if running and self.switch.watched is not None:
            self.switch.watched.extend(running)
        kind = q.dtype
        for operation in running:
            q, k, v = operation.act(q, k, v)
        return (q.to(kind), k.to(kind), v.to(kind)) if self.switch.keeps_precision else (q, k, v)

    @property
    def asking(self) -> int | None:
        """How many leading tokens alone are queries, where nothing else is done to q, k and v; None for all of them."""
        now = self.switch.present
        on = [now.on] if now.shares is None else [name for name, _ in now.shares.counts]
        asked = {self._asking(name) for name in on}
        return asked.pop() if len(asked) == 1 else None

    def _asking(self, adapter: str | None) -> int | None:
        running = self.lists.get(adapter, ()) if adapter is not None else ()
        return running[0].asking if len(running) == 1 else None

    @property
    def needs_map(self) -> bool:
        """Whether an edit that is on wants the attention map itself, which a fused kernel never shows."""
        now = self.switch.present
        playing = [now.on] if now.shares is None else [now.on, *(name for name, _ in now.shares.counts)]
        return any(
            operation.edits("scores") or operation.edits("weights")
            for adapter in playing
            if adapter is not None
            for operation in self.lists.get(adapter, ())
        )

    def scores(self, scores: Tensor) -> Tensor:
        """Scaled products of queries and keys, before bias and mask."""
        now = self.switch.present
        return self.switch.by_image(now, partial(self._mapped, now, "scores"), self.acting(now), scores)[0]

    def weights(self, weights: Tensor) -> Tensor:
        """The softmax of the scores, before dropout."""
        now = self.switch.present
        return self.switch.by_image(now, partial(self._mapped, now, "weights"), self.acting(now), weights)[0]

    def _mapped(self, now: ForwardPass, step: str, values: Tensor) -> tuple[Tensor]:
        for operation in (self.lists.get(now.on) if now.on is not None else None) or ():
            if operation.edits(step):
                edited = getattr(operation.layer, step)(values)
                values = edited.to(values.dtype) if self.switch.keeps_precision else edited
        return (values,)


class Watch:
    """A forward pre-hook on a block whose own parameters train under some adapters: no operation runs there."""

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.adapters: list[str] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        now = self.switch.present
        if now.gradient and module.training and not torch.is_grad_enabled() and now.on in self.adapters:
            refuse_untrained()


class Wiring:
    """All that is installed on the live model, and the way to take any of it off again."""

    def __init__(self) -> None:
        self.switch = Switch()
        self._hooks: dict[tuple[int, str, int | str, int], tuple[PointHook, list[RemovableHandle]]] = {}
        self._modules: list[nn.Module] = []
        self._classes: dict[int, tuple[nn.Module, type[nn.Module], list[str]]] = {}
        self._attached: dict[str, list[tuple[list[Any], Any]]] = {}  # by adapter: where it is listed, operation
        self._begins: list[tuple[nn.Module, RemovableHandle]] = []
        self._watches: list[tuple[nn.Module, Watch, RemovableHandle]] = []

    def operations(self, adapter: str) -> list[Any]:
        """Every operation of one adapter."""
        return [operation for _, operation in self._attached.get(adapter, ())]

    def lists_of(self, adapter: str) -> list[list[Any]]:
        """Where the operations of one adapter stand; a list may come several times."""
        return [listed for listed, _ in self._attached.get(adapter, ())]

    def at(self, point: Point, operation: Operation) -> None:
        """Install an operation at a point, with what must stand in for the point to be passed."""
        self.express(point.needs, operation.adapter)
        key = (id(point.module), point.side, point.item, point.call)
        if key not in self._hooks:
            self._modules.append(point.module)
            turn = Turn() if point.calls else None
            handles = [
                module.register_forward_pre_hook(Mark(self.switch, turn, number))
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
        self._note(hook.listed(operation.adapter), operation)

    def weight(self, module: nn.Module, kind: type[nn.Module], operation: EditWeight) -> None:
        """Install an edit of a module's weight."""
        edits = self._rewrite(module, kind, operation.adapter, "vpeft_weight", WeightEdits)
        listed = edits.listed(operation.adapter)
        listed.append(operation)
        self._note(listed, operation)

    def core(self, module: nn.Module, kind: type[nn.Module], operation: EditCore) -> None:
        """Install an edit between q, k, v and their use."""
        edits = self._rewrite(module, kind, operation.adapter, "vpeft_core", CoreEdits)
        listed = edits.listed(operation.adapter)
        listed.append(operation)
        self._note(listed, operation)

    def _note(self, listed: list[Any], operation: Any) -> None:
        self._attached.setdefault(operation.adapter, []).append((listed, operation))

    def express(self, needs: tuple[StandIn, ...], adapter: str) -> None:
        """Let classes stand in for those of modules, together with the anchors that they call."""
        for need in needs:
            self._use(need.module, need.kind, adapter)
            need.module.__dict__.update(need.anchors)

    def carry(self, module: nn.Module, kind: type[nn.Module], adapter: str, carrier: Any) -> None:
        """Let a module carry inserted tokens."""
        self._use(module, kind, adapter)
        module.__dict__["vpeft_carrier"] = carrier

    def begin_at(self, point: Point, time_axis: int | None = None) -> None:
        """Let a pass begin where inputs enter a tower, while any adapter is attached; done once for each tower."""
        if all(module is not point.module for module, _ in self._begins):
            begin = Begin(self.switch, point.item, time_axis)
            # before all other hooks there
            handle = point.module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True)
            self._begins.append((point.module, handle))

    def count_frames_at(self, module: nn.Module) -> None:
        """Note the number of frames of each pass where `module` takes clips, while any adapter is attached."""
        if not any(isinstance(hook, CountFrames) for hook in module._forward_pre_hooks.values()):
            self._begins.append((module, module.register_forward_pre_hook(CountFrames(self.switch))))

    def watch(self, module: nn.Module, adapter: str) -> None:
        """Say so where parameters inside `module` cannot learn, because it runs without gradients in a checkpoint."""
        found = next((watch for owner, watch, _ in self._watches if owner is module), None)
        if found is None:
            found = Watch(self.switch)
            self._watches.append((module, found, module.register_forward_pre_hook(found)))
        found.adapters.append(adapter)

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
        for listed, operation in self._attached.pop(adapter, ()):
            # An acceleration that was on when its model was dropped has put another operation in its place.
            if operation in listed:
                listed.remove(operation)
        for hook, _ in self._hooks.values():
            hook.forget(adapter)
        for module, *_ in self._classes.values():
            for edits in ("vpeft_weight", "vpeft_core"):
                if edits in module.__dict__:
                    module.__dict__[edits].forget(adapter)
        for watched in list(self._watches):
            watched[1].adapters[:] = [one for one in watched[1].adapters if one != adapter]
            if not watched[1].adapters:
                watched[2].remove()
                self._watches.remove(watched)
        if not self._attached:
            for _, handle in self._begins:
                handle.remove()
            self._begins.clear()
        for key, (hook, handles) in list(self._hooks.items()):
            if not any(hook.lists.values()):
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
            "begins": self._begins,
            "watches": self._watches,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.switch = state["switch"]
        self._modules = [module for module, *_ in state["hooks"]]
        self._hooks = {(id(module), *rest): (hook, handles) for module, rest, hook, handles in state["hooks"]}
        self._classes = {id(module): (module, plain, users) for module, plain, users in state["classes"]}
        self._attached = state["attached"]
        self._begins, self._watches = state["begins"], state["watches"]
