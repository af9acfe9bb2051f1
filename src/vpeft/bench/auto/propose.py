"""Which candidates to try, from experience: a small set of which one is good on each of the tasks that look alike.

Tasks are weighted by how alike their probes are: w = exp(-d^2 / 2 h^2), with the distance d between probes and the
median distance h between the known tasks. Half of all weight is shared out evenly, since a few known tasks and probes
of some hundred images are weak evidence. The set grows greedily: next comes the candidate that raises the weighted mean
over tasks of the best score in the set the most. So the second candidate is the one that helps where the first one
fails, which need not be the second best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vpeft.bench.auto.experience import Candidate, Experience

# On the records of pocket a fifth to eighth candidate changed nothing (benchmarks/auto_regret.py --proposals).
PROPOSALS = 4
# The share of the weight that does not look at the probes.
EVEN = 0.5


@dataclass(frozen=True)
class Proposal:
    """A candidate with the reason for it.

    Attributes:
        candidate: what to try.
        relative_cost: its time, where the mean of all candidates is 1.
        behind: how far it was below the best candidate on the known tasks, weighted; 0 or less.
        best_on: the known tasks where it is the best of the set, most alike first.
    """

    candidate: Candidate
    relative_cost: float
    behind: float
    best_on: tuple[str, ...]

    def reason(self) -> str:
        """Say why it is tried."""
        points = f"{-100 * self.behind:.1f} points below the best on the known tasks"
        return f"{points}; the best of this set on {', '.join(self.best_on)}" if self.best_on else points


def weights(experience: Experience, probes: Mapping[str, float] | None) -> list[float]:
    """How much each known task counts; they sum to 1. Alike without probes."""
    count = len(experience.tasks)
    if probes is None or not experience.probes:
        return [1 / count] * count
    names = sorted(name for name in probes if all(name in known for known in experience.probes))
    if not names:
        return [1 / count] * count
    known = np.array([[one[name] for name in names] for one in experience.probes])
    here = np.array([probes[name] for name in names])
    between = [float(np.linalg.norm(known[one] - known[other])) for one, other in combinations(range(count), 2)]
    width = float(np.median(between)) if between else 1.0
    distance = np.linalg.norm(known - here, axis=1)
    # The nearest task has weight 1 before they are made to sum to 1, so that a far-away one does not divide 0 by 0.
    found = np.exp(-(distance**2 - distance.min() ** 2) / (2 * max(width, 1e-9) ** 2))
    return [float(EVEN / count + (1 - EVEN) * one) for one in found / found.sum()]


def propose(
    experience: Experience,
    probes: Mapping[str, float] | None = None,
    *,
    count: int = PROPOSALS,
    most_cost: float | None = None,
) -> list[Proposal]:
    """The candidates to try, in this order.

    Args:
        experience: scores on known tasks.
        probes: of the task at hand; without them all known tasks count alike.
        count: how many at most.
        most_cost: the most that they may cost together, in runs of mean cost; a candidate that is too dear is passed
            over for the next.
    """
    weight = np.array(weights(experience, probes))
    behind, costs = experience.behind, experience.relative_costs()
    alone = weight @ behind
    best = np.full(len(experience.tasks), behind.min() - 1.0)
    chosen: list[int] = []
    spent = 0.0
    while len(chosen) < count:
        left = [
            index
            for index in range(len(experience.candidates))
            if index not in chosen and (most_cost is None or spent + costs[index] <= most_cost)
        ]
        if not left:
            break
        # Of equal gains the better one alone, then the earlier one.
        gains = {index: (float(weight @ np.maximum(best, behind[:, index])), float(alone[index])) for index in left}
        index = max(left, key=lambda one: gains[one])
        chosen.append(index)
        best = np.maximum(best, behind[:, index])
        spent += costs[index]
    return [
        Proposal(
            experience.candidates[index], costs[index], float(alone[index]), _best_on(index, chosen, experience, weight)
        )
        for index in chosen
    ]


def _best_on(index: int, chosen: Sequence[int], experience: Experience, weight: NDArray[np.float64]) -> tuple[str, ...]:
    behind = experience.behind
    tasks = sorted(range(len(experience.tasks)), key=lambda task: -weight[task])
    return tuple(
        experience.tasks[task] for task in tasks if behind[task, index] == max(behind[task, other] for other in chosen)
    )
