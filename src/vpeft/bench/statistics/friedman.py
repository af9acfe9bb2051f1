"""Friedman's test over tasks, and Nemenyi's critical difference of mean ranks (Demšar, JMLR 7, 2006).

Friedman's test asks whether the mean ranks of k methods over N tasks could come from methods that are all alike. Where
it says no, two methods are told apart if their mean ranks differ by more than the critical difference
CD = q_alpha * sqrt(k (k + 1) / (6 N)), with q_alpha the studentised range for k groups divided by sqrt(2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vpeft.bench.statistics.estimate import Array, task_means
from vpeft.bench.statistics.ranks import mean_ranks


@dataclass(frozen=True)
class Friedman:
    """The outcome of Friedman's test.

    Attributes:
        ranks: mean rank of each method; 1 is best.
        tasks: N.
        chi_square, p_chi_square: Friedman's statistic with its correction for ties, k - 1 degrees of freedom.
        f, p: Iman and Davenport's less conservative statistic, k - 1 and (k - 1)(N - 1) degrees of freedom.
    """

    ranks: dict[str, float]
    tasks: int
    chi_square: float
    p_chi_square: float
    f: float
    p: float


def friedman(scores: Mapping[str, Array], *, higher_is_better: bool = True) -> Friedman:
    """Friedman's test of methods by their means over seeds; `scores` are (tasks, seeds) of each method.

    Raises:
        MissingCells: a run is missing.
        ValueError: fewer than three methods or two tasks.
    """
    _, table = task_means(scores, "Friedman's test", least=3)
    tasks, methods = table.shape
    if tasks < 2:
        raise ValueError("Friedman's test needs at least two tasks")
    ranks = mean_ranks(scores, higher_is_better=higher_is_better)
    if np.all(table == table[:, :1]):  # all tied everywhere: scipy divides 0 by 0
        return Friedman(ranks, tasks, 0.0, 1.0, 0.0, 1.0)
    found = stats.friedmanchisquare(*table.T)
    chi_square = float(found.statistic)
    left = tasks * (methods - 1) - chi_square
    if left < 1e-9:  # the same order on all tasks: F is infinite, and its p of 0 would be no probability
        return Friedman(ranks, tasks, chi_square, float(found.pvalue), math.inf, float(found.pvalue))
    f = (tasks - 1) * chi_square / left
    p = float(stats.f.sf(f, methods - 1, (methods - 1) * (tasks - 1)))
    return Friedman(ranks, tasks, chi_square, float(found.pvalue), f, p)


def critical_difference(methods: int, tasks: int, *, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of mean ranks for a number of methods and tasks."""
    if methods < 2 or tasks < 1:
        raise ValueError("a critical difference needs two methods and a task")
    return studentised_range(methods, alpha) * math.sqrt(methods * (methods + 1) / (6 * tasks))


def studentised_range(methods: int, alpha: float) -> float:
    """q_alpha of Nemenyi's test: the studentised range of infinitely many degrees of freedom over sqrt(2)."""
    return float(stats.studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
