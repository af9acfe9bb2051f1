"""Other classes for an adapter whose classifier is made of their names: base to new, one data set to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from torch import nn

from ..arguments import IN_ORDER, one_of, require
from .node import AdapterError
from .tuned_model import TunedModel

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


@runtime_checkable
class ByName(Protocol):
    """A task whose head is made of the names of classes."""

    labels: tuple[str, ...]

    def with_names(self, labels: Sequence[str], names: Sequence[str] = ()) -> Self: ...

    def head(self, backbone: Backbone, width: int, /) -> nn.Module | None: ...


def rename_classes(tuned: TunedModel, labels: Sequence[str], names: Sequence[str] = ()) -> TunedModel:
    """Let the active adapter tell other classes apart, by their names; what it has learnt in the towers stays.

    Args:
        tuned: with a task that classifies by name.
        labels: the new classes, in the order of their numbers.
        names: words for them, where the labels say nothing.

    Returns:
        The same model.

    Raises:
        AdapterError: the adapter's classifier has weights of its own, or a method keeps something for each class.
    """
    require(
        "rename_classes(tuned, labels)",
        tuned=(tuned, one_of(TunedModel, says="a TunedModel, such as `load` returns")),
        labels=(labels, IN_ORDER),
    )
    task, adapter = tuned.task, tuned.adapter()
    if not isinstance(task, ByName):
        raise AdapterError(
            "This adapter does not tell classes apart by their names, so its outputs belong to the classes that it"
            " was trained on. Train it with the task classification by name, or extend it: vpeft extend."
        )
    bound = [type(method).__name__ for method in tuned.methods() if getattr(method, "classes", None)]
    if bound:
        raise AdapterError(f"{', '.join(bound)} keeps something for each class, so the classes cannot be exchanged.")
    other = task.with_names(labels, names)
    made = other.head(tuned.description, tuned.description.facts.width)
    assert made is not None
    adapter.head = made.to(next(tuned.backbone.parameters()).device).train(tuned.training)
    adapter.task = other
    return tuned
