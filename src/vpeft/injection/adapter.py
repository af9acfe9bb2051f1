"""The trained half of a TunedModel: layers under the names of their places, and perhaps a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from torch import Tensor, nn

from ..backbones.backbone import Backbone, no_blocks
from ..backbones.edits import Edit
from ..backbones.host_parts import part_of
from ..backbones.points import MissingPlace
from ..method import Method
from .node import AdapterError as AdapterError
from .node import Node as Node
from .placed import JOINT, TOGETHER, Placed, joined
from .statistics import Statistics


class Unfrozen:
    """Parameters of the backbone that train under one adapter, and the frozen ones they stand in for.

    A trained parameter has one home. While the adapter is on, that is the module of the backbone that uses it, and it
    is read from there, so that whoever exchanges a module's parameters (sharding over processes) is followed. While the
    adapter is off, it is kept here. The frozen values are never written to.
    """

    def __init__(self) -> None:
        self.targets: list[tuple[nn.Module, str, Node, str]] = []  # module, attribute, node and name of the adapter
        self.frozen: list[nn.Parameter | None] = []
        self._off: list[nn.Parameter | None] = []  # the trained ones, while the adapter is off

    def add(self, node: Node, name: str, module: nn.Module, attribute: str, keep: bool) -> None:
        """Let `module.attribute` train as `node.name`."""
        original = module._parameters[attribute]
        assert original is not None
        if any(owner is module and known == attribute for owner, known, _, _ in self.targets):
            return  # a wider edit already trains it
        original.requires_grad_(not keep)
        *path, leaf = name.split(".")
        self.targets.append((module, attribute, node.reach(path), leaf))
        self.frozen.append(original if keep else None)
        self._off.append(nn.Parameter(original.detach().clone()) if keep else None)

    def trained(self, number: int) -> nn.Parameter:
        """The trained parameter of one target, from where it is now."""
        off, (module, attribute, _, _) = self._off[number], self.targets[number]
        found = off if off is not None else module._parameters[attribute]
        assert found is not None
        return found

    def of(self, node: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and parameter of each target under one node of the adapter."""
        for number, (_, _, home, leaf) in enumerate(self.targets):
            if home is node:
                yield leaf, self.trained(number)

    def switch(self, on: bool) -> None:
        """Put the trained (on) or the frozen (off) parameters into the backbone."""
        for number, (module, attribute, _, _) in enumerate(self.targets):
            frozen, off = self.frozen[number], self._off[number]
            if frozen is None or on == (off is None):
                continue
            if on:
                module._parameters[attribute], self._off[number] = off, None
                continue
            trained = self.trained(number)
            if frozen.device != trained.device:
                frozen.data = frozen.data.to(trained.device)
            module._parameters[attribute], self._off[number] = frozen, trained

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the tensors that are kept here as `nn.Module._apply` changes those of a module."""
        for parameter in self._off:
            if parameter is not None:
                parameter.data = change(parameter.data)
                if parameter.grad is not None:
                    parameter.grad.data = change(parameter.grad.data)

    @property
    def exact(self) -> bool:
        """Whether the frozen values are still there."""
        return all(frozen is not None for frozen in self.frozen)


class Adapter(Node):
    """Layers by place and verb (`blocks.0.attn.q.parallel`), the head, and what is unfrozen."""

    def __init__(self, name: str, head: nn.Module | None, task: Any = None) -> None:
        super().__init__()
        self.name = name
        self.task = task
        self.train_too: tuple[str, ...] = ()  # further modules of the model that train
        self.edits: list[Edit] = []
        self.keys: list[str] = []
        self.head = head
        self.unfrozen = Unfrozen()
        self.moving = Statistics()

    def switch(self, on: bool) -> None:
        """Put what stands in for the backbone's own tensors into it, or the frozen ones."""
        self.unfrozen.switch(on)
        self.moving.switch(on)

    def put(self, edit: Edit) -> str:
        """Register what an edit trains; returns its key."""
        node = self.reach(edit.place.name.split("."))
        verb, number = str(edit.verb), 2
        while verb in node._modules:
            verb = f"{edit.verb}_{number}"
            number += 1
        if edit.layer is not None:
            node.add_module(verb, edit.layer)
        else:
            inner = node.reach([verb])
            for name in edit.parameters:
                module, attribute = edit.place.parameter(name)
                self.unfrozen.add(inner, name, module, attribute, edit.keep_original)
        self.edits.append(edit)
        key = f"{edit.place.name}.{verb}"
        self.keys.append(key)
        return key

    def owned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter of this adapter once: of its layers, of the backbone where they train, of the head."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            own = [(key, value) for key, value in module._parameters.items() if value is not None]
            for key, value in (*own, *self.unfrozen.of(module)):
                if id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{key}" if prefix else key, value

    def inside(self, node: nn.Module) -> Iterator[nn.Parameter]:
        """Every parameter of one node of this adapter and of what is below it, those of the backbone included."""
        yield from node.parameters()
        for module in node.modules():
            yield from (value for _, value in self.unfrozen.of(module))

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimiser sees: the layers' and unfrozen parameters, then the head's."""
        for name, parameter in self.owned():
            if parameter.requires_grad:
                yield name, parameter

    def stated_rate_factors(self) -> dict[str, float]:
        """Factors of the learning rate, by name; a layer states those of its tensors in an attribute `rate_factors`."""
        return {
            f"{prefix}.{key}" if prefix else key: factor
            for prefix, module in self.named_modules()
            for key, factor in getattr(module, "rate_factors", {}).items()
        }

    def only_for_training(self) -> set[str]:
        """Names of the tensors that only training needs; a layer or head names its own in `training_only`."""
        parts = [
            f"{prefix}.{part}" if prefix else part
            for prefix, module in self.named_modules()
            for part in getattr(module, "training_only", ())
        ]
        return {name for name in self.tensors() if any(name == part or name.startswith(f"{part}.") for part in parts)}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that makes this adapter: parameters (each once) and persistent buffers, detached."""
        persistent = self.state_dict()
        found: dict[str, Tensor] = {name: value.detach() for name, value in self.owned()}
        found |= {name: value.detach() for name, value in self.named_buffers() if name in persistent}
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.unfrozen.apply(fn)
        return self


def require_equal_shapes(given: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise `AdapterError` unless both have the same names and shapes; the message says what differs."""
    shapes = [
        f"{key}: {tuple(given[key].shape)} in the file, {tuple(own[key].shape)} here"
        for key in own
        if key in given and own[key].shape != given[key].shape
    ]
    differences = {
        "Missing": (sorted(own.keys() - given.keys()), ", "),
        "Unknown": (sorted(given.keys() - own.keys()), ", "),
        "Of another shape": (shapes, "; "),
    }
    told = [
        f"{what}: {joint.join(found[:5])}{' ...' if len(found) > 5 else ''}."
        for what, (found, joint) in differences.items()
        if found
    ]
    if told:
        raise AdapterError(f"The tensors do not fit this adapter. {' '.join(told)}")


def edits_of(description: Backbone, placed: Sequence[Placed]) -> list[Edit]:
    """What the methods ask for, each on its tower or its part of the host.

    Raises:
        MissingPlace: a method walks over blocks, and the description has none.
        AdapterError: a method for all towers together does not say how it edits them.
    """
    edits: list[Edit] = []
    for one in placed:
        if one.tower == TOGETHER or JOINT in one.tower:
            edits += one.method.edits_across(joined(description, one.tower))
        else:
            edits += _edits_of(description.towers.get(one.tower) or part_of(description, one.tower), one.method)
    return edits


def _edits_of(tower: Backbone, method: Method) -> list[Edit]:
    try:
        edits = list(method.edits(tower))
    except (IndexError, ValueError):
        if tower.blocks:
            raise
        raise MissingPlace(no_blocks(tower.facts.architecture)) from None
    if not edits and not tower.blocks and not method.trains_head_only:
        raise MissingPlace(no_blocks(tower.facts.architecture))
    return edits
