"""The methods of a board compared: tests over tasks, groups of ties, and fronts against each cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vpeft.bench.statistics import (
    Friedman,
    Pairwise,
    ParetoPlace,
    Probabilities,
    bayesian_signed_rank,
    cliques,
    critical_difference,
    friedman,
    pareto_front,
    wilcoxon_holm,
)
from vpeft.report.board import ENOUGH_CELLS, Board, BoardRow
from vpeft.report.cost import Cost

# Below so many tasks a mean rank says little, and a pairwise test can reject nothing.
ENOUGH_TASKS = 5
# Half width of the region of practical equivalence of a share: one point.
ROPE = 0.01


@dataclass(frozen=True)
class Comparison:
    """The complete methods of a board, compared over its tasks.

    Attributes:
        order: labels from the best mean rank to the worst.
        friedman: the test of all together.
        critical_difference: of mean ranks, at 0.05 by Nemenyi.
        bars: groups of neighbours that are not told apart by it.
        pairwise: Wilcoxon's test of all pairs with Holm's correction.
        against_best: the same of all methods against the best mean alone, which corrects for fewer pairs.
        probabilities: of each method to be better than the best mean, practically equivalent, or worse; empty for a
            metric that is no share, whose region of equivalence is not known.
    """

    order: tuple[str, ...]
    friedman: Friedman
    critical_difference: float
    bars: tuple[tuple[str, ...], ...]
    pairwise: Pairwise
    against_best: Pairwise
    probabilities: Mapping[str, Probabilities]

    def p_against_best(self, best: str, label: str) -> float | None:
        """The corrected p-value of a method against the best; None for the best itself."""
        return self.against_best.corrected.get((best, label), self.against_best.corrected.get((label, best)))


def compared(board: Board) -> Comparison | None:
    """The comparison of the complete rows; None for fewer than three of them, or than `ENOUGH_TASKS` tasks."""
    rows = [row for row in board.rows if row.complete]
    if len(rows) < 3 or len(board.tasks) < ENOUGH_TASKS:
        return None
    scores = {row.label: row.scores for row in rows}
    measure = board.measure
    test = friedman(scores, higher_is_better=measure.higher_is_better)
    distance = critical_difference(len(rows), len(board.tasks))
    order = sorted(scores, key=lambda label: test.ranks[label])
    best = rows[0]
    return Comparison(
        order=tuple(order),
        friedman=test,
        critical_difference=distance,
        bars=tuple(cliques(order, lambda one, other: abs(test.ranks[one] - test.ranks[other]) > distance)),
        pairwise=wilcoxon_holm(scores),
        against_best=wilcoxon_holm(scores, against=best.label),
        probabilities={
            row.label: bayesian_signed_rank(row.scores, best.scores, rope=ROPE) for row in rows if row is not best
        }
        if measure.share
        else {},
    )


def front(board: Board, cost: Cost) -> dict[str, ParetoPlace]:
    """The place of each complete row on the front of score against a cost; none where there are too few cells."""
    rows: list[BoardRow] = [row for row in board.rows if row.complete and cost.of(row) is not None]
    if not rows or rows[0].scores.size < ENOUGH_CELLS:
        return {}
    return pareto_front(
        {row.label: row.scores for row in rows},
        {row.label: float(cost.of(row) or 0.0) for row in rows},
        higher_is_better=board.measure.higher_is_better,
    )
