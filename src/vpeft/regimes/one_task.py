"""A model with heads for several tasks, as the model of one of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.batch import Batch
from vpeft.errors import VpeftError, nearest
from vpeft.injection.tuned_model import TunedModel
from vpeft.task import Task


class NoSuchTask(VpeftError):
    """An adapter has no head for this task, or has one head alone."""


class OneTask(nn.Module):
    """Inputs -> the outputs of one task's head: `vpeft.evaluate(OneTask(tuned, "digits"), images)`.

    Args:
        tuned: with an adapter of several tasks on.
        name: of the task.

    Raises:
        NoSuchTask: the adapter does not serve it.
    """

    takes_batch = True

    def __init__(self, tuned: TunedModel, name: str) -> None:
        super().__init__()
        self.tuned, self.name = tuned, name
        self.task = task_named(tuned.task, name)

    def forward(self, *inputs: Any, batch: Batch | None = None, **named: Any) -> Any:
        """The outputs of the head for this task."""
        given = Batch(inputs[0] if inputs else None) if batch is None else batch
        return self.tuned(*inputs, batch=given.with_(task=self.name), **named)


def task_named(task: Any, name: str) -> Task:
    """One of the tasks that a task of several is made of.

    Raises:
        NoSuchTask: it has none of this name, or is one task itself.
    """
    parts: dict[str, Task] = getattr(task, "parts", None) or {}
    if not parts:
        raise NoSuchTask(f"There is no task {name!r} to choose: the adapter serves one task. Leave the choice out.")
    if name not in parts:
        raise NoSuchTask(f"The adapter has no task {name!r}. {nearest(name, parts)}")
    return parts[name]
