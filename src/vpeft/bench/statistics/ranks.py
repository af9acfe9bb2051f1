"""Mean ranks over tasks, and rank correlations between two lists of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vpeft.bench.statistics.estimate import DRAWS, SEED, Array, Interval, interval_of, task_means


@dataclass(frozen=True)
class Correlation:
    """Rank correlations between two lists of scores, each with its interval; `count` is how many were in common."""

    spearman: Interval
    kendall: Interval
    count: int


def mean_ranks(scores: Mapping[str, Array], *, higher_is_better: bool = True) -> dict[str, float]:
    """The mean over tasks of each method's rank by its mean over seeds; 1 is best, ties share their ranks."""
    names, table = task_means(scores, "Ranks")
    ranks = stats.rankdata(-table if higher_is_better else table, method="average", axis=1)
    return {name: float(rank) for name, rank in zip(names, ranks.mean(axis=0), strict=True)}


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
        return interval_of(measure(left, right), drawn, level)

    return Correlation(
        spearman=interval(lambda a, b: float(stats.spearmanr(a, b).statistic)),
        kendall=interval(lambda a, b: float(stats.kendalltau(a, b).statistic)),
        count=len(names),
    )
