"""The trained half of a TunedModel: layers under the names of their places, and perhaps a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..backbones.backbone import Backbone, no_blocks
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method
from .node import AdapterError as AdapterError
from .node import Node as Node
from .placed import TOGETHER, Placed
from .statistics import Statistics


class Unfrozen:
    """Parameters of the backbone that train under one adapter, and the frozen ones they stand in for.

    While the adapter is on, the backbone's modules hold the trained parameters; otherwise the frozen objects. Both are
    objects that change places, so that the frozen values are never written to.
    """

    def __init__(self) -> None:
        self.targets: list[tuple[nn.Module, str, nn.Parameter]] = []
        self.frozen: list[nn.Parameter | None] = []

    def add(self, node: Node, name: str, module: nn.Module, attribute: str, keep: bool) -> None:
        """Let `module.attribute` train as `node.name`."""
        original = module._parameters[attribute]
        assert original is not None
        if any(owner is module and known == attribute for owner, known, _ in self.targets):
            return  # a wider edit already trains it
        original.requires_grad_(not keep)
        trained = nn.Parameter(original.detach().clone()) if keep else original
        *path, leaf = name.split(".")
        node.reach(path).register_parameter(leaf, trained)
        self.targets.append((module, attribute, trained))
        self.frozen.append(original if keep else None)

    def switch(self, on: bool) -> None:
        """Put the trained (on) or the frozen (off) parameters into the backbone."""
        for (module, attribute, trained), frozen in zip(self.targets, self.frozen, strict=True):
            if frozen is None:
                continue
            if not on and frozen.device != trained.device:
                frozen.data = frozen.data.to(trained.device)
            module._parameters[attribute] = trained if on else frozen

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

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimiser sees: the layers' and unfrozen parameters, then the head's."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def tensors(self) -> dict[str, Tensor]:
        """Everything that makes this adapter: parameters (each once) and persistent buffers, detached."""
        state = self.state_dict()
        once = {name for name, _ in self.named_parameters()} | {name for name, _ in self.named_buffers()}
        return {name: value.detach() for name, value in state.items() if name in once}


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
    """What the methods ask for, each on its tower.

    Raises:
        MissingPlace: a method walks over blocks, and the description has none.
        AdapterError: a method for all towers together does not say how it edits them.
    """
    edits: list[Edit] = []
    for one in placed:
        if one.tower == TOGETHER:
            edits += one.method.edits_across(description.towers)
        else:
            edits += _edits_of(description.towers[one.tower], one.method)
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
