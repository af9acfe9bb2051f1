"""Wilcoxon's signed-rank test of pairs of methods over tasks, with Holm's correction for the number of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from vpeft.bench.statistics.estimate import Array, task_means

Pair = tuple[str, str]


@dataclass(frozen=True)
class Pairwise:
    """p-values of pairs of methods.

    Attributes:
        p: of each pair, two-sided, as Wilcoxon's test gives it.
        corrected: the same by Holm's step-down method, so that the chance of any false claim is at most alpha.
        smallest: the least corrected value that so many tasks and pairs can reach, whatever the scores. Above alpha
            the design cannot tell any two methods apart by this test.
    """

    p: dict[Pair, float]
    corrected: dict[Pair, float]
    smallest: float

    def differ(self, left: str, right: str, alpha: float = 0.05) -> bool:
        """Whether two methods are told apart."""
        return self.corrected.get((left, right), self.corrected.get((right, left), 1.0)) <= alpha

    def can_reject(self, alpha: float = 0.05) -> bool:
        """Whether any scores at all could be significant."""
        return self.smallest <= alpha


def wilcoxon_holm(scores: Mapping[str, Array], *, against: str | None = None) -> Pairwise:
    """Wilcoxon's test of all pairs, or of all methods `against` one, by their means over seeds.

    Differences of zero are split evenly between the sides (Demšar 2006).

    Raises:
        MissingCells: a run is missing.
        ValueError: fewer than two methods, or `against` is none of them.
    """
    names, table = task_means(scores, "A pairwise test", least=2)
    if against is not None and against not in names:
        raise ValueError(f"{against!r} is none of the methods: {names}")
    pairs = [
        (left, right)
        for left, right in combinations(range(len(names)), 2)
        if against in (None, names[left], names[right])
    ]
    raw = [_wilcoxon(table[:, left] - table[:, right]) for left, right in pairs]
    named = [(names[left], names[right]) for left, right in pairs]
    least = min(1.0, 2.0 ** (1 - table.shape[0]) * len(pairs))
    return Pairwise(dict(zip(named, raw, strict=True)), dict(zip(named, holm(raw), strict=True)), least)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected by Holm (1979): the i-th smallest of m times m - i + 1, and never below the one before."""
    corrected, before = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=lambda one: p[one])):
        before = max(before, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = before
    return corrected


def _wilcoxon(differences: Array) -> float:
    if not np.any(differences):
        return 1.0
    # Scores are shares of some thousand images, so equal differences are told by rounding away what floats add.
    return float(stats.wilcoxon(np.round(differences, 12), zero_method="zsplit").pvalue)
