"""Groups of methods that are not told apart: by the leader's interval, and as bars of a critical-difference diagram."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vpeft.bench.statistics.estimate import DRAWS, Array
from vpeft.bench.statistics.paired_bootstrap import paired_bootstrap


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


def cliques(order: Sequence[str], differ: Callable[[str, str], bool]) -> list[tuple[str, ...]]:
    """The longest runs of neighbours in `order` of which no two differ; of at least two, none within another.

    Args:
        order: methods from best to worst.
        differ: whether two methods are told apart.
    """
    found: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and not any(differ(order[one], order[last + 1]) for one in range(first, last + 1)):
            last += 1
        if last > first and not any(start <= first and last <= end for start, end in found):
            found.append((first, last))
    return [tuple(order[first : last + 1]) for first, last in found]
