"""What belongs to one forward pass: which adapter acts, what was read for later, and the size of the images.

The pass under way is found through a context variable, so that threads and asyncio tasks which use one model at the
same time each have their own. One model may run inside another: each `Switch` finds its own pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..backbones.features import Feature

if TYPE_CHECKING:
    from .switch import Shares

Within = Mapping[str | None, Callable[[], AbstractContextManager[None]]]


class Queries(Protocol):
    """Keeps what the frozen model sees in each image, by the image's name."""

    def query(self, names: Sequence[str], compute: Callable[[], Tensor], /) -> Tensor:
        """The queries (B, D) of a batch: `compute()`, or what it gave before for these names."""
        ...


@dataclass(frozen=True)
class Choice:
    """What `enable` chooses.

    Attributes:
        name: the adapter that is on; None for the frozen backbone.
        route: the adapters of the images of the next batches, one for each image; None while one serves the batch.
    """

    name: str | None = None
    route: tuple[str, ...] | None = None


class Cell:
    """Has one value in each pass.

    Attributes:
        plain: the value in the pass that compiled code shares, where no context variable can be read.
    """

    plain: Any = None


class ForwardPass:
    """One forward pass of one TunedModel.

    Attributes:
        choice: what `enable` had chosen when it began.
        on: the adapter whose operations run; None for none. While several adapters serve one batch it is None, but for
            the moment in which one adapter's own rows are worked on.
        shares: who has which images of the batch; None while one adapter serves all of it.
        within: what to enter around an adapter's work on its own rows, by adapter (its own random numbers).
        size: height and width of the images (frames, height and width of clips); None if no image was seen.
        values: what was read in this pass, by the cell that holds it.
        counts: numbers that hold for every part of the pass (inserted tokens), by the cell that holds them.
        shared: whether this is the one pass of compiled code, whose values lie in the cells themselves.
        open: whether the model's own forward call is under way.
        handed: whether the next forward call of the model shall run in this pass instead of opening its own.
        task: the backward pass in which it began; -1 for none.
        gradient: whether gradients were recorded when it began.
        query: the frozen model's own pooled feature of the inputs (B, D), where an edit reads it.
        rows: which of the images are worked on, while several adapters serve the batch and it is one's turn.
        images: how many there are in the batch then.
        tasks: the tasks of the adapter that this pass is for; None for all of them.
    """

    def __init__(
        self,
        choice: Choice,
        on: str | None,
        shares: Shares | None = None,
        within: Within | None = None,
        size: tuple[int, ...] | None = None,
        *,
        shared: bool = False,
        open: bool = False,
        task: int = -1,
        tasks: tuple[str, ...] | None = None,
    ) -> None:
        self.choice, self.on, self.shares = choice, on, shares
        self.within: Within = within or {}
        self.size = size
        self.values: dict[Cell, Any] = {}
        self.counts: dict[Cell, int] = {}
        self.shared, self.open, self.handed, self.task = shared, open, False, task
        self.gradient = not shared and torch.is_grad_enabled()
        self.query: Tensor | None = None
        self.rows: slice | None = None
        self.images = 1
        self.tasks = tasks
        self._features: dict[str | None, dict[str, Feature]] = {}
        self._of_tasks: dict[str | None, dict[str, dict[str, Feature]]] = {}

    def recall(self, cell: Cell) -> Any:
        """The value that the cell has in this pass, or None."""
        return cell.plain if self.shared else self.values.get(cell)

    def keep(self, cell: Cell, value: Any) -> None:
        """Give the cell a value in this pass; None takes it away."""
        if self.shared:
            cell.plain = value
        elif value is None:
            self.values.pop(cell, None)
        else:
            self.values[cell] = value

    def count(self, cell: Cell, number: int) -> None:
        """Remember a number that holds for every part of the pass."""
        if self.shared:
            cell.plain = number
        else:
            self.counts[cell] = number

    def counted(self, cell: Cell) -> int | None:
        """The number that was remembered."""
        return cell.plain if self.shared else self.counts.get(cell)

    @property
    def idle(self) -> bool:
        """Whether no adapter acts."""
        return self.on is None and self.shares is None

    @property
    def features(self) -> dict[str, Feature]:
        """What the head of the adapter that is on reads, by the name of the place."""
        return self.features_of(self.on)

    def features_of(self, adapter: str | None) -> dict[str, Feature]:
        """What the head of one adapter reads, by the name of the place; its own images alone where several share."""
        return self._features.setdefault(adapter, {})

    def features_of_tasks(self, adapter: str | None) -> dict[str, dict[str, Feature]]:
        """What the head of each task of one adapter reads of its own, by the name of the task, then of the place."""
        return self._of_tasks.setdefault(adapter, {})

    def let_go(self) -> None:
        """Keep no tensor alive any longer."""
        self.values, self._features, self._of_tasks, self.query = {}, {}, {}, None


PASSES: ContextVar[Mapping[int, ForwardPass]] = ContextVar("vpeft_passes")
"""The pass of each switch, by its number, in the present thread or task."""

CHOICES: ContextVar[Mapping[int, Choice]] = ContextVar("vpeft_choices")
"""What `with enable` chose, by the number of the switch, in the present thread or task."""

TASKS: ContextVar[Mapping[int, tuple[str, ...]]] = ContextVar("vpeft_tasks")
"""What `with for_tasks` chose, by the number of the switch, in the present thread or task."""

NO_PASSES: Mapping[int, ForwardPass] = {}
NO_CHOICES: Mapping[int, Choice] = {}
NO_TASKS: Mapping[int, tuple[str, ...]] = {}
