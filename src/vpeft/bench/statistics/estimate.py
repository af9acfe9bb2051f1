"""What every statistic returns or refuses with: an estimate with its interval, and the error for missing runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpeft.errors import VpeftError

Array = NDArray[np.float64]

# Enough that the second digit of a 95 % interval stands still; a seed, so that a report is the same twice.
DRAWS = 2000
SEED = 20240131


class MissingCells(VpeftError):
    """A total was asked for while runs are missing."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bootstrap interval."""

    value: float
    low: float
    high: float

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside the interval."""
        return not self.low <= point <= self.high


def interval_of(value: float, drawn: Array, level: float) -> Interval:
    """The percentile interval of bootstrap draws around `value`."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def task_means(scores: Mapping[str, Array], what: str, *, least: int = 1) -> tuple[list[str], Array]:
    """The names, and the means over seeds as one table (tasks, methods).

    Args:
        scores: (tasks, seeds) of each method, over the same tasks.
        what: is compared, for the message.
        least: methods that are needed.

    Raises:
        MissingCells: a run is missing.
        ValueError: fewer methods than needed, or other tasks.
    """
    names = list(scores)
    if len(names) < least:
        raise ValueError(f"{what} needs at least {least} methods, and there are {len(names)}: {names}")
    if len({scores[name].shape[0] for name in names}) > 1:
        raise ValueError(f"{what} needs the same tasks of all methods")
    table = np.stack([scores[name].mean(axis=1) for name in names], axis=1)
    if np.isnan(table).any():
        raise MissingCells(f"{what} needs all methods on all tasks; some runs are missing.")
    return names, table


def some(items: Sequence[str], most: int = 5) -> str:
    """The first items in words, and how many more there are."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown}, and {len(items) - most} more"
