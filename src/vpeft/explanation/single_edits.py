"""Attribution by place: each edit of an adapter is switched off by itself, and its lack is measured.

An edit counts by how much the outputs change without it, and by how much the score falls. Edits that share a layer are
switched together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpeft.batch import Batch
from vpeft.errors import VpeftError
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import Task
from vpeft.training.evaluate import on_processor


@dataclass(frozen=True)
class Lack:
    """What happens without one edit.

    Attributes:
        places: of the edit; several where they share a layer.
        change: norm of the change of the outputs, divided by the norm of the outputs; None where outputs are no tensor,
            or nothing can be computed.
        score: the leading score without it, where targets are known.
        reason: why it cannot be switched off by itself.
    """

    places: tuple[str, ...]
    change: float | None = None
    score: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Attribution:
    """All edits of an adapter.

    Attributes:
        leading: the name of the score.
        score: with all edits; None where no targets are known.
        without_all: what the frozen backbone says under the adapter's head.
        lacks: one for each edit, in the order of the forward pass as the method states them.
    """

    leading: str
    score: float | None
    without_all: Lack
    lacks: tuple[Lack, ...]


def attribution(tuned: TunedModel, task: Task, batches: Sequence[Batch]) -> Attribution:
    """Switch the edits of the active adapter off one after the other.

    Args:
        tuned: the model, which evaluates and is as it was afterwards.
        task: of the adapter.
        batches: of samples, with targets where scores are wanted.
    """
    outputs, score = _measured(tuned, task, batches)
    lacks = []
    for numbers in _together(tuned):
        places = tuple(tuned.adapter().keys[number] for number in numbers)
        try:
            with without_edits(tuned, numbers):
                lacks.append(_lack(places, outputs, *_measured(tuned, task, batches)))
        except (VpeftError, RuntimeError) as error:  # another edit needs what it gives
            lacks.append(Lack(places, reason=str(error)))
    try:
        with without_edits(tuned, range(len(tuned.adapter().edits))):
            nothing = _lack(("all",), outputs, *_measured(tuned, task, batches))
    except (VpeftError, RuntimeError) as error:  # a head for features of another width
        nothing = Lack(("all",), reason=str(error))
    return Attribution(task.leading.name, score, nothing, tuple(lacks))


@contextmanager
def without_edits(tuned: TunedModel, numbers: Sequence[int]) -> Iterator[None]:
    """Inside, some edits of the active adapter do nothing; afterwards they act as before.

    Args:
        tuned: the model.
        numbers: of the edits, in the order of `tuned.adapter().edits`.

    Raises:
        CannotSwitchOff: an edit trains parameters of which no frozen values are kept.
    """
    adapter = tuned.adapter()
    layers = {id(adapter.edits[number].layer) for number in numbers if adapter.edits[number].layer is not None}
    own = [number for number in numbers if adapter.edits[number].layer is None]
    swapped = [pair for number in own for pair in _frozen_values(tuned, adapter.keys[number])]
    before = [trained.detach().clone() for trained, _ in swapped]
    held = [(listed, list(listed)) for listed in _lists(tuned, adapter.name)]
    try:
        for listed, operations in held:
            listed[:] = [one for one in operations if id(getattr(one, "layer", None)) not in layers]
        with torch.no_grad():
            for trained, frozen in swapped:
                trained.copy_(frozen)
        yield
    finally:
        with torch.no_grad():
            for (trained, _), value in zip(swapped, before, strict=True):
                trained.copy_(value)
        for listed, operations in held:
            listed[:] = operations


class CannotSwitchOff(VpeftError):
    """An edit cannot be switched off by itself."""


def _lists(tuned: TunedModel, name: str) -> list[list[Any]]:
    """Where the operations of an adapter stand, each list once."""
    return list({id(listed): listed for listed in tuned._wiring.lists_of(name)}.values())


def _frozen_values(tuned: TunedModel, key: str) -> list[tuple[Tensor, Tensor]]:
    """The trained and the frozen values of an edit's own parameters."""
    adapter = tuned.adapter()
    node: Any = adapter
    for step in key.split("."):
        node = node._modules[step]
    found: list[tuple[Tensor, Tensor]] = []
    for number, (_, _, home, _) in enumerate(adapter.unfrozen.targets):
        if home is node or any(home is inner for inner in node.modules()):
            frozen = adapter.unfrozen.frozen[number]
            if frozen is None:
                raise CannotSwitchOff(f"{key} trains in place, and its frozen values are not kept.")
            found.append((adapter.unfrozen.trained(number), frozen.detach()))
    return found


def _together(tuned: TunedModel) -> list[list[int]]:
    """The numbers of the edits, those with one layer together."""
    groups: dict[int, list[int]] = {}
    for number, edit in enumerate(tuned.adapter().edits):
        groups.setdefault(-1 - number if edit.layer is None else id(edit.layer), []).append(number)
    return list(groups.values())


def _measured(tuned: TunedModel, task: Task, batches: Sequence[Batch]) -> tuple[list[Any], float | None]:
    """The outputs for each batch, and the leading score where all batches have targets."""
    device = next(tuned.backbone.parameters()).device
    metric = task.metric() if all(batch.targets is not None for batch in batches) else None
    found = []
    with torch.inference_mode():
        for batch in batches:
            outputs = on_processor(task.run(tuned, batch.to(device)))
            found.append(outputs)
            if metric is not None:
                metric.update(outputs, batch)
    score = None if metric is None else metric.compute().get(task.leading.name)
    return found, None if score is None else float(score)


def _lack(places: tuple[str, ...], full: Sequence[Any], without: Sequence[Any], score: float | None) -> Lack:
    if not all(isinstance(one, Tensor) for one in (*full, *without)):
        return Lack(places, None, score)
    away = sum(float((a - b).float().square().sum()) for a, b in zip(full, without, strict=True)) ** 0.5
    size = sum(float(a.float().square().sum()) for a in full) ** 0.5
    return Lack(places, away / size if size else None, score)
