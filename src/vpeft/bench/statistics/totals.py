"""Means over tasks and seeds. A mean over tasks is refused while a cell is missing.

The mean of the easy tasks that happened to finish is not a smaller benchmark but a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vpeft.bench.statistics.estimate import DRAWS, SEED, Array, Interval, MissingCells, interval_of, some


def mean_and_std(values: Sequence[float] | Array) -> tuple[float, float]:
    """The mean and the sample standard deviation (n - 1; NaN for fewer than two values)."""
    given = np.asarray(values, dtype=np.float64)
    if given.size == 0:
        raise ValueError("a mean of nothing was asked for")
    return float(given.mean()), float(given.std(ddof=1)) if given.size > 1 else float("nan")


def total(scores: Array, tasks: Sequence[str], method: str = "this method") -> float:
    """The mean over all tasks of the means over seeds. Raises MissingCells that names what is missing."""
    holes = missing(scores, tasks)
    if holes:
        raise MissingCells(
            f"No total for {method}: {len(holes)} of {scores.size} runs are missing ({some(holes)}). "
            "Run the benchmark again; it makes only what is missing."
        )
    return float(scores.mean(axis=1).mean())


def std_of_total(scores: Array) -> float:
    """The standard deviation over seeds of the mean over tasks; NaN for one seed."""
    return mean_and_std(scores.mean(axis=0))[1]


def missing(scores: Array, tasks: Sequence[str]) -> list[str]:
    """The empty cells of (tasks, seeds), in words."""
    return [f"{tasks[int(task)]} seed {int(seed)}" for task, seed in np.argwhere(np.isnan(scores))]


def total_interval(scores: Array, *, draws: int = DRAWS, level: float = 0.95, seed: int = SEED) -> Interval:
    """The mean over tasks with an interval over seeds alone: how far another set of seeds would move it."""
    if np.isnan(scores).any():
        raise MissingCells("An interval of a total needs all runs; some are missing.")
    rows, columns = scores.shape
    cell = np.random.default_rng(seed).integers(0, columns, (draws, rows, columns))
    drawn = np.take_along_axis(scores[None], cell, axis=2).mean(axis=(1, 2))
    return interval_of(float(scores.mean()), drawn, level)
