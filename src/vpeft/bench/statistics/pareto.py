"""Pareto fronts of score against cost, and how sure a place on them is.

A method is on the front if no other has a better mean at no more cost. Means within the noise of each other change
places with the next set of tasks and seeds, so each method also gets the share of bootstrap draws in which it is on the
front, and a line may only be drawn through methods of which each is surely better than the cheaper one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vpeft.bench.statistics.estimate import DRAWS, SEED, Array, MissingCells
from vpeft.bench.statistics.paired_bootstrap import resampled


@dataclass(frozen=True)
class ParetoPlace:
    """Where a method stands.

    Attributes:
        on_front: no other method has a better mean at no more cost.
        share: of the bootstrap draws over tasks and seeds in which it is on the front.
        beaten_by: methods that cost no more and are better by an interval that excludes 0.
        step: it is a step of the line: surely better than the step before it, which costs less.
    """

    on_front: bool
    share: float
    beaten_by: tuple[str, ...]
    step: bool


def pareto_front(
    scores: Mapping[str, Array],
    costs: Mapping[str, float],
    *,
    higher_is_better: bool = True,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = SEED,
) -> dict[str, ParetoPlace]:
    """The place of each method, cheapest first.

    Args:
        scores: (tasks, seeds) of each method, over the same tasks and seeds.
        costs: of each method; less is better. Of parameters, bytes or seconds.
        higher_is_better: of the scores.
        draws, level, seed: of the bootstrap.

    Raises:
        MissingCells: a run is missing.
        ValueError: a method has no cost.
    """
    lacking = [name for name in scores if name not in costs]
    if lacking:
        raise ValueError(f"no cost is known of {', '.join(lacking)}")
    sign = 1.0 if higher_is_better else -1.0
    names = sorted(scores, key=lambda name: (costs[name], -sign * float(scores[name].mean())))
    if not names:
        return {}
    table = np.stack([sign * scores[name] for name in names])
    if np.isnan(table).any():
        raise MissingCells("A front needs all runs of all methods; some are missing.")
    cost = np.array([costs[name] for name in names])
    _, tasks, seeds = table.shape
    task, cell = resampled(tasks, seeds, draws, seed)
    drawn = np.stack([one[task, cell].mean(axis=(1, 2)) for one in table])
    share = _on_front(drawn, cost).mean(axis=1)
    on_front = _on_front(table.mean(axis=(1, 2))[:, None], cost)[:, 0]

    def surely_better(one: int, other: int) -> bool:
        # The draws of the paired bootstrap: all methods are resampled by the same tasks and seeds.
        return float(np.quantile(drawn[one] - drawn[other], (1 - level) / 2)) > 0

    steps = {names[index] for index in _steps(cost, surely_better)}
    places = {}
    for index, name in enumerate(names):
        rivals = [other for other in range(len(names)) if other != index and cost[other] <= cost[index]]
        beaten_by = tuple(names[other] for other in rivals if surely_better(other, index))
        places[name] = ParetoPlace(bool(on_front[index]), float(share[index]), beaten_by, name in steps)
    return places


def _on_front(scores: Array, cost: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether each method (rows) is on the front of each draw (columns)."""
    cheaper = cost[:, None] <= cost[None, :]
    np.fill_diagonal(cheaper, False)
    strictly = cost[:, None] < cost[None, :]
    found = np.ones(scores.shape, dtype=bool)
    for index in range(len(cost)):
        better = (scores > scores[index]) & cheaper[:, index, None]
        # Equal scores at a lower cost are better, too.
        better |= (scores == scores[index]) & strictly[:, index, None]
        found[index] = ~better.any(axis=0)
    return found


def _steps(cost: Array, surely_better: Callable[[int, int], bool]) -> list[int]:
    """The methods that a line may join. Of equal costs the first has the better mean."""
    steps = [0]
    for index in range(1, len(cost)):
        if cost[index] > cost[steps[-1]] and surely_better(index, steps[-1]):
            steps.append(index)
    return steps
