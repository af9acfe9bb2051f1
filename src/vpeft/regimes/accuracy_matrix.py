"""The accuracy on each task after each task, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class AccuracyMatrix(BaseModel):
    """a[i][j], the accuracy on task j after task i; None where it was not measured. B is the number of tasks so far.

    Attributes:
        values: a row for each task that is done.
        counts: how many images each task is judged by.
        chances: the accuracy of guessing on each task, for forward transfer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[tuple[float | None, ...], ...] = ()
    counts: tuple[int, ...] = ()
    chances: tuple[float, ...] = ()

    def with_row(self, row: Sequence[float | None]) -> AccuracyMatrix:
        """The matrix after one more task."""
        return self.model_copy(update={"values": (*self.values, tuple(row))})

    def pooled(self, i: int) -> float:
        """A_i: the share of all images of tasks 0 to i that are right after task i."""
        found = [(self._at(i, j), self.counts[j]) for j in range(i + 1)]
        return sum(value * count for value, count in found) / sum(count for _, count in found)

    def per_task(self, i: int) -> float:
        """The mean over tasks 0 to i of their accuracies after task i; equal to `pooled` for tasks of equal size."""
        return sum(self._at(i, j) for j in range(i + 1)) / (i + 1)

    def _at(self, i: int, j: int) -> float:
        value = self.values[i][j]
        assert value is not None, "every task so far is measured after each task"
        return value

    @property
    def curve(self) -> list[float]:
        """A_0, A_1, ..."""
        return [self.pooled(i) for i in range(len(self.values))]

    @property
    def forgetting(self) -> float | None:
        """Mean over j < B - 1 of (the largest a[i][j] with j <= i < B - 1) - a[B - 1][j]; None for one task."""
        last = len(self.values) - 1
        if last < 1:
            return None
        lost = [max(self._at(i, j) for i in range(j, last)) - self._at(last, j) for j in range(last)]
        return sum(lost) / last

    @property
    def backward_transfer(self) -> float | None:
        """Mean over j < B - 1 of a[B - 1][j] - a[j][j]; None for one task."""
        last = len(self.values) - 1
        if last < 1:
            return None
        return sum(self._at(last, j) - self._at(j, j) for j in range(last)) / last

    @property
    def forward_transfer(self) -> float | None:
        """Mean over j > 0 of a[j - 1][j] - chance; None for one task, or where later tasks have no outputs yet."""
        ahead = [self.values[j - 1][j] for j in range(1, len(self.values))]
        if not ahead or any(value is None for value in ahead):
            return None
        gains = [value - self.chances[j] for j, value in enumerate(ahead, 1) if value is not None]
        return sum(gains) / len(gains)

    def metrics(self) -> dict[str, float | None]:
        """Last and average accuracy, pooled and per task, forgetting, backward and forward transfer."""
        last = len(self.values) - 1
        each = [self.per_task(i) for i in range(last + 1)]
        return {
            "last": self.pooled(last),
            "average": sum(self.curve) / (last + 1),
            "last_per_task": each[-1],
            "average_per_task": sum(each) / len(each),
            "forgetting": self.forgetting,
            "backward_transfer": self.backward_transfer,
            "forward_transfer": self.forward_transfer,
        }

    def as_dict(self) -> dict[str, Any]:
        """The matrix and its metrics, JSON."""
        return {**self.model_dump(mode="json"), "curve": self.curve, "metrics": self.metrics()}
