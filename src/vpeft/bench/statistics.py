"""Means, intervals, ranks and correlations of benchmark scores.

The design is paired: every method sees the same tasks, splits and seeds, so that differences are taken cell by cell
before anything is averaged. Intervals are percentile bootstraps. A mean over tasks is refused while a cell is missing,
because the mean of the easy tasks that happened to finish is not a smaller benchmark but a wrong one.

Scores are arrays (tasks, seeds); a missing cell is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

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


@dataclass(frozen=True)
class Correlation:
    """Rank correlations between two lists of scores, each with its interval; `count` is how many were in common."""

    spearman: Interval
    kendall: Interval
    count: int


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
            f"No total for {method}: {len(holes)} of {scores.size} runs are missing ({_some(holes)}). "
            "Run the benchmark again; it makes only what is missing."
        )
    return float(scores.mean(axis=1).mean())


def std_of_total(scores: Array) -> float:
    """The standard deviation over seeds of the mean over tasks; NaN for one seed."""
    return mean_and_std(scores.mean(axis=0))[1]


def missing(scores: Array, tasks: Sequence[str]) -> list[str]:
    """The empty cells of (tasks, seeds), in words."""
    return [f"{tasks[int(task)]} seed {int(seed)}" for task, seed in np.argwhere(np.isnan(scores))]


def paired_bootstrap(
    ours: Array, theirs: Array, *, draws: int = DRAWS, level: float = 0.95, seed: int = SEED
) -> Interval:
    """The mean difference `ours - theirs` with its interval over tasks and seeds.

    Both arrays are (tasks, seeds) with the same rows and columns. Each draw resamples the tasks, and within each drawn
    task the seeds, always taking both methods' scores of the same cell. Raises MissingCells for a NaN, ValueError for
    unlike shapes.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(
            f"paired scores are two arrays (tasks, seeds) of one shape, not {ours.shape} and {theirs.shape}"
        )
    difference = ours - theirs
    if np.isnan(difference).any():
        raise MissingCells("A paired comparison needs the same runs of both methods; some are missing.")
    rows, columns = difference.shape
    generator = np.random.default_rng(seed)
    task = generator.integers(0, rows, (draws, rows, 1))
    cell = generator.integers(0, columns, (draws, rows, columns))
    # Mean over seeds, then over tasks: all tasks weigh the same.
    drawn = difference[task, cell].mean(axis=2).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))


def total_interval(scores: Array, *, draws: int = DRAWS, level: float = 0.95, seed: int = SEED) -> Interval:
    """The mean over tasks with an interval over seeds alone: how far another set of seeds would move it."""
    if np.isnan(scores).any():
        raise MissingCells("An interval of a total needs all runs; some are missing.")
    rows, columns = scores.shape
    cell = np.random.default_rng(seed).integers(0, columns, (draws, rows, columns))
    drawn = np.take_along_axis(scores[None], cell, axis=2).mean(axis=(1, 2))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))


def mean_ranks(scores: Mapping[str, Array], *, higher_is_better: bool = True) -> dict[str, float]:
    """The mean over tasks of each method's rank by its mean over seeds; 1 is best, ties share their ranks."""
    names = list(scores)
    table = np.stack([scores[name].mean(axis=1) for name in names])
    if np.isnan(table).any():
        raise MissingCells("Ranks need all methods on all tasks; some runs are missing.")
    ranks = stats.rankdata(-table if higher_is_better else table, method="average", axis=0)
    return {name: float(rank) for name, rank in zip(names, ranks.mean(axis=1), strict=True)}


def tie_groups(
    scores: Mapping[str, Array], *, draws: int = DRAWS, level: float = 0.95, higher_is_better: bool = True
) -> dict[str, int]:
    """A group number per method, 1 for the best: methods in one group are not told apart from its leader.

    The best mean leads group 1; each next method joins the group while the interval of its paired difference to the
    leader contains 0, else it leads the next group. Intervals are not corrected for the number of comparisons, so a
    boundary between groups is a hint and a shared group is no proof of equality.
    """
    order = sorted(scores, key=lambda name: float(scores[name].mean()), reverse=higher_is_better)
    groups: dict[str, int] = {}
    leader: str | None = None
    number = 0
    for name in order:
        if leader is None or paired_bootstrap(scores[leader], scores[name], draws=draws, level=level).excludes(0.0):
            leader, number = name, number + 1
        groups[name] = number
    return groups


def rank_correlation(
    ours: Mapping[str, float], theirs: Mapping[str, float], *, draws: int = DRAWS, level: float = 0.95, seed: int = SEED
) -> Correlation:
    """Spearman's rho and Kendall's tau-b over the names in common, with intervals from resampling the names.

    Raises ValueError for fewer than three names in common or when either side is constant.
    """
    names = sorted(set(ours) & set(theirs))
    if len(names) < 3:
        raise ValueError(f"a rank correlation needs three names in common, and there are {len(names)}: {names}")
    left = np.array([ours[name] for name in names])
    right = np.array([theirs[name] for name in names])
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        raise ValueError("a rank correlation needs scores that differ, and on one side they are all equal")
    picks = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    # A draw in which one side is constant has no correlation and is passed over.
    kept = [pick for pick in picks if np.ptp(left[pick]) > 0 and np.ptp(right[pick]) > 0]

    def interval(measure: Callable[[Array, Array], float]) -> Interval:
        drawn = np.array([measure(left[pick], right[pick]) for pick in kept])
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Interval(measure(left, right), float(low), float(high))

    return Correlation(
        spearman=interval(lambda a, b: float(stats.spearmanr(a, b).statistic)),
        kendall=interval(lambda a, b: float(stats.kendalltau(a, b).statistic)),
        count=len(names),
    )


def _some(items: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown}, and {len(items) - most} more"
