"""Pareto fronts of score against cost, and how sure a place on them is.

A method is on the front if no other has a better mean at no more cost. Means within the noise of each other change
places with the next set of tasks and seeds, so each method also gets the share of bootstrap draws in which it is on the
front, and a line may only be drawn through methods of which each is surely better than the cheaper one before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vpeft.bench.statistics.estimate import DRAWS, SEED, Array, MissingCells
from vpeft.bench.statistics.paired_bootstrap import paired_bootstrap, resampled


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
    task, cell = resampled(*table.shape[1:], draws, seed)
    drawn = np.stack([one[task, cell].mean(axis=(1, 2)) for one in table])
    share = _on_front(drawn, cost).mean(axis=1)
    on_front = _on_front(table.mean(axis=(1, 2))[:, None], cost)[:, 0]
    steps = _steps(names, table, cost, draws, level, seed)
    places = {}
    for index, name in enumerate(names):
        rivals = [other for other in range(len(names)) if other != index and cost[other] <= cost[index]]
        surely = tuple(
            names[other]
            for other in rivals
            if paired_bootstrap(table[other], table[index], draws=draws, level=level, seed=seed).low > 0
        )
        places[name] = ParetoPlace(bool(on_front[index]), float(share[index]), surely, name in steps)
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


def _steps(names: list[str], table: Array, cost: Array, draws: int, level: float, seed: int) -> set[str]:
    """The methods that a line may join. Of equal costs the first has the better mean."""
    steps = [0]
    for index in range(1, len(names)):
        last = steps[-1]
        if cost[index] > cost[last]:
            gain = paired_bootstrap(table[index], table[last], draws=draws, level=level, seed=seed)
            if gain.low > 0:
                steps.append(index)
    return {names[index] for index in steps}
