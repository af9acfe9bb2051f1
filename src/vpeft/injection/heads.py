"""Heads of an adapter: how wide the features are that reach them, and how each way of asking for one is carried out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any, Protocol

from torch import nn

from ..arguments import Kind, WrongArgument, one_of, require
from ..backbones.backbone import Backbone
from ..backbones.blocks import Stage
from ..backbones.edits import Edit
from ..backbones.grids import Scale
from ..backbones.points import Layout
from ..batch import Batch
from ..head import Head, get_head
from .adapter import AdapterError


class HasHead(Protocol):
    """The part of a `Task` that attaching needs."""

    def head(self, backbone: Backbone, width: int, /) -> nn.Module | None: ...


HeadMaker = Callable[[Backbone, int], nn.Module]
HeadLike = nn.Module | HeadMaker | Mapping[str, Any]
HEAD_CALL = "A function that makes a head takes (description, width)"
HEAD = Kind(
    "a torch.nn.Module, a function (description, width) -> head, or a mapping from tasks to these",
    lambda value: isinstance(value, Mapping) or callable(value),
)
TASK = Kind(
    "a task, such as vpeft.get_task('classification')()",
    lambda value: not isinstance(value, type) and callable(getattr(value, "head", None)),
)


def feature_width(edits: Sequence[Edit], description: Backbone) -> int:
    """Channels of the pooled feature: the backbone's, unless a layer at the outlet states its own `feature_width`."""
    width = description.facts.width
    for edit in edits:
        if edit.place is description.outlet:
            width = int(getattr(edit.layer, "feature_width", width))
    return width


def level_places(edits: Sequence[Edit], description: Backbone) -> list[Stage]:
    """The levels that a layer at the outlet makes, as places that heads read in place of the backbone's stages.

    Such a layer states `gives_levels`, the channels and the stride of each level, high resolution first.
    """
    found: list[Stage] = []
    scale = Scale(description.inputs.size)
    for edit in edits:
        if edit.place is description.outlet:
            for number, (width, stride) in enumerate(getattr(edit.layer, "gives_levels", ())):
                found.append(
                    Stage(
                        name=f"levels.{number}",
                        width=width,
                        layout=Layout.MAP,
                        enter=None,
                        exit=description.outlet.exit,
                        verbs=frozenset(),
                        depth=description.outlet.depth,
                        grid=scale.grid(description.inputs.size, stride),
                        stride=stride,
                        scale=scale,
                    )
                )
    return found


def seen_by_heads(edits: Sequence[Edit], description: Backbone) -> Backbone:
    """The description as a head sees it: with the levels that a method makes as its stages, where one makes some."""
    levels = level_places(edits, description)
    return description.with_stages(levels) if levels else description


class Heads(Head):
    """Several heads of one adapter, by the name of their task.

    A batch that names its task gets the outputs of that head; any other batch gets those of all, as a mapping, or of
    the tasks that the pass is for.

    Raises:
        AdapterError: a name cannot be that of a module.
    """

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, head in heads.items():
            if not name.isidentifier() or hasattr(self, name):
                raise AdapterError(
                    f"{name!r} cannot be the name of a task: it is no word of letters, digits and _, or torch has a use"
                    " for it. Take another name."
                )
            self.add_module(name, head)
        self.tasks = tuple(heads)
        self.reads = tuple(dict.fromkeys(place for head in heads.values() for place in reads_of(head)))

    def forward(self, features: Any, batch: Batch | None = None) -> Any:
        """Features of one pass -> outputs of one head, or {name: outputs} of all."""
        if batch is not None and batch.task:
            return self._one(batch.task, features, batch)
        return {name: self._one(name, features, batch) for name in features.tasks or self.tasks}

    def _one(self, task: str, features: Any, batch: Batch | None) -> Any:
        if task not in self._modules:
            raise AdapterError(f"This adapter has no head for the task {task!r}. It has: {', '.join(self.tasks)}.")
        return _given(self._modules[task], features.for_task(task), None if batch is None else batch.of_task(task))


def task_names(head: Any, task: Any) -> tuple[str, ...]:
    """The names of the tasks, where what was asked for is several heads; none for one head."""
    if isinstance(head, Heads):
        return head.tasks
    if isinstance(head, Mapping):
        return tuple(head)
    named: tuple[str, ...] = getattr(task, "task_names", ()) if head is None else ()
    return named


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
        return _made_by(head, description, width)
    return None if task is None else task.head(description, width)


def _made_by(head: Callable[[Backbone, int], nn.Module], description: Backbone, width: int) -> nn.Module:
    """The head that a function makes.

    Raises:
        WrongArgument: the function takes other arguments, or makes no module.
    """
    with suppress(ValueError):  # some built-in functions do not say what they take
        try:
            signature(head).bind(description, width)
        except TypeError as error:
            raise WrongArgument(
                f"{HEAD_CALL}, and {getattr(head, '__name__', type(head).__name__)} takes others: {error}."
            ) from None
    made = head(description, width)
    require(HEAD_CALL, made=(made, one_of(nn.Module, says="a torch.nn.Module")))
    return made


class FreshHead(UserWarning):
    """The model's own classifier stays frozen, and its weights look as they were initialised."""


def own_head(description: Backbone, head: nn.Module | None, trained: Sequence[nn.Parameter]) -> nn.Module | None:
    """The model's own classifier, where the adapter has no head and the classifier stays frozen; else None."""
    if head is not None or description.host is not None or len(description.towers) > 1:
        return None
    classifier = description.classifier
    parameters = list(classifier.parameters())
    train = {id(parameter) for parameter in trained}
    return classifier if parameters and not any(id(parameter) in train for parameter in parameters) else None


def looks_fresh(classifier: nn.Module) -> bool:
    """Whether the last linear map or convolution has the values that the libraries initialise one with.

    These are a bias of zeros, weights of zeros, or torch's uniform numbers up to 1 / sqrt(inputs). Training leaves none
    of them.
    """
    layers = [layer for layer in classifier.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    if not layers or any(parameter.is_meta for parameter in classifier.parameters()):
        return False
    weight, bias = layers[-1].weight.detach().float(), layers[-1].bias
    if bias is not None and not bool(bias.detach().any()):
        return True
    bound = 1.0 / math.sqrt(weight[0].numel())
    highest = float(weight.abs().max())
    uniform = 0.95 * bound < highest <= bound * 1.001 and math.isclose(
        float(weight.std()), bound / math.sqrt(3.0), rel_tol=0.05
    )
    return highest == 0.0 or (uniform and weight.numel() >= 256)


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
