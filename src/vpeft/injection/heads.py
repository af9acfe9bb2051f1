"""Heads of an adapter: how wide the features are that reach them, and how each way of asking for one is carried out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..batch import Batch
from ..head import Head, get_head
from .adapter import AdapterError


class HasHead(Protocol):
    """The part of a `Task` that attaching needs."""

    def head(self, backbone: Backbone, width: int, /) -> nn.Module | None: ...


HeadMaker = Callable[[Backbone, int], nn.Module]
HeadLike = nn.Module | HeadMaker | Mapping[str, Any]


def feature_width(edits: Sequence[Edit], description: Backbone) -> int:
    """Channels of the pooled feature: the backbone's, unless a layer at the outlet states its own `feature_width`."""
    width = description.facts.width
    for edit in edits:
        if edit.place is description.outlet:
            width = int(getattr(edit.layer, "feature_width", width))
    return width


class Heads(Head):
    """Several heads of one adapter, by the name of their task.

    A batch that names its task gets the outputs of that head; any other batch gets those of all, as a mapping.
    """

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, head in heads.items():
            self.add_module(name, head)
        self.reads = tuple(dict.fromkeys(place for head in heads.values() for place in reads_of(head)))

    def forward(self, features: Any, batch: Batch | None = None) -> Any:
        """Features of one pass -> outputs of one head, or {name: outputs} of all."""
        if batch is not None and batch.task:
            if batch.task not in self._modules:
                raise AdapterError(
                    f"This adapter has no head for the task {batch.task!r}. It has: {', '.join(self._modules)}."
                )
            return _given(self._modules[batch.task], features, batch)
        return {name: _given(head, features, batch) for name, head in self._modules.items()}


def _given(head: nn.Module | None, features: Any, batch: Batch | None) -> Any:
    assert head is not None
    return head(features, batch) if isinstance(head, Head) else head(features["outlet"])


def made_head(
    description: Backbone, width: int, num_classes: int | None, head: HeadLike | None, task: HasHead | None
) -> nn.Module | None:
    """The head that was asked for in one of the ways that `TunedModel.attach` knows; None for none."""
    if num_classes is not None:
        return new_head(width, num_classes)
    if isinstance(head, nn.Module):
        return head
    if isinstance(head, Mapping):
        made = {name: made_head(description, width, None, one, None) for name, one in head.items()}
        lacking = [name for name, one in made.items() if one is None]
        if lacking or not made:
            raise AdapterError(f"A mapping of heads names a head for each task; there is none for {lacking or 'any'}.")
        return Heads({name: one for name, one in made.items() if one is not None})
    if head is not None:
        return head(description, width)
    return None if task is None else task.head(description, width)


def reads_of(head: nn.Module | None) -> tuple[str, ...]:
    """The places that a head reads; a plain module reads the pooled feature."""
    if head is None:
        return ()
    return tuple(head.reads) if isinstance(head, Head) else ("outlet",)


def new_head(width: int, classes: int) -> nn.Module:
    """A linear head, weights N(0, 0.02) cut at two deviations, bias 0, as timm starts its classifiers."""
    if classes < 1:
        raise AdapterError(f"A head needs at least one class; {classes} were asked for.")
    return get_head("linear")(width, classes)
