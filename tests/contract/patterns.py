"""The patterns of methods' edits: what the code that carries them out can tell apart, without sizes and formulas.

An edit's pattern is the kind of its place, its verb, and what its layer offers or asks for. A LoRA with another start
has the same patterns; an adapter beside the MLP and one behind it do not. The fast tests take, on each family, as few
methods as together have every pattern, others on the next family, and each method at least once; `make matrix` takes
every method on every family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from torch import nn

import vpeft
from tests.models import FAMILIES
from vpeft.backbones.backbone import Backbone
from vpeft.backbones.edits import Edit
from vpeft.backbones.places import Attention, Place, Projection, Span
from vpeft.injection.merge import why_not
from vpeft.method import Method
from vpeft.methods import all_methods
from vpeft.taxonomy.pattern import shares_tensors
from vpeft.taxonomy.properties import kind_of_place

# What the code in vpeft/injection asks a layer for.
_ASKED = (
    "channels_first",
    "wants_grid",
    "wants_grids",
    "gives_sequence",
    "gives_levels",
    "scores",
    "weights",
    "weight_delta",
    "affine",
    "linear_map",
)
# What training asks a method for.
_HOOKS = ("prepare", "begin_epoch", "penalty", "advance", "begin_task", "end_task", "after_backward")

Patterns = frozenset[str]


def edit_pattern(edit: Edit) -> str:
    """The place, the verb, whether it reads and merges, and what the layer offers or asks for."""
    parts = [type(edit.place).__name__, kind_of_place(edit.place.name).rsplit(".", 1)[-1], edit.verb]
    if edit.verb == "insert_tokens":
        parts.append(edit.lifetime)
    if edit.reads:
        parts.append("reads")
    if edit.verb != "unfreeze" and why_not(edit) is None:
        parts.append("merges")
    layer = edit.layer
    if layer is not None:
        parts += [name for name in _ASKED if getattr(layer, name, False)]
        if any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in layer.modules()):
            parts.append("statistics")
        if any(isinstance(one, nn.Dropout) and one.p for one in layer.modules()):
            parts.append("draws")
    return " ".join(parts)


def patterns_of(method: Method, edits: Sequence[Edit]) -> Patterns:
    """The patterns of a method's edits, and what it does beside them."""
    found = {edit_pattern(edit) for edit in edits}
    found |= {f"has {name}" for name in _HOOKS if getattr(type(method), name) is not getattr(Method, name)}
    if shares_tensors(edits):
        found.add("shares tensors")
    if not type(method).restorable:
        found.add("is not restored")
    return frozenset(found)


def plain_patterns_of(method: Method, edits: Sequence[Edit]) -> Patterns:
    """Of each edit the kind of place and the verb: what meets the backbone."""
    return frozenset(f"{_kind(edit.place)} {edit.verb}" for edit in edits)


def _kind(place: Place) -> str:
    """One of the four kinds of places, by the classes of vpeft/backbones/places.py."""
    return next(kind.__name__ for kind in (Projection, Attention, Span, Place) if isinstance(place, kind))


@cache
def _described(family: str) -> Backbone:
    return vpeft.describe(FAMILIES[family]())


@cache
def all_patterns(of: Callable[[Method, Sequence[Edit]], Patterns] = patterns_of) -> Mapping[str, Patterns]:
    """The patterns of each method, on all of the three families together; empty for one that fits none of them."""
    found: dict[str, Patterns] = {}
    for name, kind in all_methods().items():
        tries = [_edits(name, family) for family in FAMILIES]
        found[name] = frozenset[str]().union(*(of(kind(), edits) for edits in tries if edits is not None))
    return found


@cache
def _edits(name: str, family: str) -> list[Edit] | None:
    kind = all_methods()[name]
    for fields in ({}, *kind.variants):
        try:
            return list(kind(**fields).edits(_described(family)))
        except vpeft.MissingPlace:
            continue
    return None


def covering(patterns: Mapping[str, Patterns]) -> list[str]:
    """As few methods as have every pattern among them; of those that add as many, the first ones (a greedy choice)."""
    left = frozenset[str]().union(*patterns.values())
    chosen: list[str] = []
    while left:
        best = max(patterns, key=lambda name: len(patterns[name] & left))
        chosen.append(best)
        left -= patterns[best]
    return chosen


def fast_cells(
    families: Sequence[str], patterns: Mapping[str, Patterns], refused: Callable[[str, str], bool]
) -> list[tuple[str, str]]:
    """Cells (method, family): on each family every pattern that any method has there.

    Args:
        families: in order. On each the choice begins with another method, so that all have their turn.
        patterns: of each method.
        refused: whether a family refuses a method.
    """
    cells: list[tuple[str, str]] = []
    names = list(patterns)
    for turn, family in enumerate(families):
        begin = turn * len(names) // max(len(families), 1)
        there = [name for name in (*names[begin:], *names[:begin]) if not refused(name, family)]
        cells += [(name, family) for name in covering({name: patterns[name] for name in there})]
    return cells


def one_cell_each(
    names: Iterable[str], families: Sequence[str], refused: Callable[[str, str], bool]
) -> list[tuple[str, str]]:
    """A cell for each method, on the first family that does not refuse it; methods that all refuse have none."""
    places = ((name, next((family for family in families if not refused(name, family)), None)) for name in names)
    return [(name, place) for name, place in places if place is not None]
