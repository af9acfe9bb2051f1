"""The patterns of methods' edits, and which methods stand for all in the fast tests.

An edit's pattern is the kind of its place and its verb: what the code that carries it out meets in a backbone. Sizes,
formulas and the names of methods do not count. The fast tests have each method once, and on each family as few methods
as together have every pattern, others on the next family; `make matrix` takes every method on every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import vpeft
from tests.models import FAMILIES
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.places import Attention, Place, Projection, Span
from vpeft.methods import all_methods

Patterns = frozenset[str]
Cells = list[tuple[str, str]]
Refused = Callable[[str, str], bool]


def pattern_of(edit: Edit) -> str:
    """For instance `Projection parallel`; the kinds are those of vpeft/backbones/places.py, `Place` all sites."""
    kind = next(kind.__name__ for kind in (Projection, Attention, Span, Place) if isinstance(edit.place, kind))
    return f"{kind} {edit.verb}"


@cache
def all_patterns() -> Mapping[str, Patterns]:
    """The patterns of each method, on all of the three families together; empty for one that fits none of them."""
    return {
        name: frozenset(pattern_of(edit) for family in FAMILIES for edit in _edits(name, family))
        for name in all_methods()
    }


@cache
def _described(family: str) -> Backbone:
    return vpeft.describe(FAMILIES[family]())


def _edits(name: str, family: str) -> list[Edit]:
    kind = all_methods()[name]
    for fields in ({}, *kind.variants):
        try:
            return list(kind(**fields).edits(_described(family)))
        except vpeft.MissingPlace:
            continue
    return []


def one_cell_each(names: Iterable[str], families: Sequence[str], refused: Refused) -> Cells:
    """A cell (method, family) for each method; the families take turns. Methods that all refuse have none."""
    cells: Cells = []
    for turn, name in enumerate(names):
        begin = turn % max(len(families), 1)
        there = [family for family in (*families[begin:], *families[:begin]) if not refused(name, family)]
        cells += [(name, family) for family in there[:1]]
    return cells


def cells_for_every_pattern(
    families: Sequence[str], patterns: Mapping[str, Patterns], refused: Refused, cells: Sequence[tuple[str, str]] = ()
) -> Cells:
    """Cells that give each family every pattern that any method has there, beside `cells`, which are there already.

    Args:
        families: in order. On each the choice begins with another method, so that all have their turn.
        patterns: of each method.
        refused: whether a family refuses a method.
    """
    found: Cells = []
    names = list(patterns)
    for turn, family in enumerate(families):
        begin = turn * len(names) // len(families)
        there = {name: patterns[name] for name in (*names[begin:], *names[:begin]) if not refused(name, family)}
        have = frozenset[str]().union(*(patterns[name] for name, place in cells if place == family))
        found += [(name, family) for name in covering(there, have)]
    return found


def covering(patterns: Mapping[str, Patterns], have: Patterns = frozenset()) -> list[str]:
    """As few methods as have every pattern but those in `have`; of those that add as many, the first (greedy)."""
    left = frozenset[str]().union(*patterns.values()) - have
    chosen: list[str] = []
    while left:
        best = max(patterns, key=lambda name: len(patterns[name] & left))
        chosen.append(best)
        left -= patterns[best]
    return chosen
