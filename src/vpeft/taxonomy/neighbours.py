"""Which methods are near a method: likeness of their edits, and what the difference is in a sentence.

Likeness is computed from properties alone: places, verbs, shapes of the tensors that train and that are kept, what
holds of them, and how many numbers train. The sentence is that of the facts file of either method, if it has one, and
else the properties in which the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from .facts import facts_of
from .properties import Properties

NEAR = 0.6
"""least likeness of two methods that are called near"""
# What a part of the likeness counts; the sum is one. Places and shapes tell most methods apart, so they count most.
_WEIGHTS = {"places": 0.3, "verbs": 0.2, "trains": 0.25, "keeps": 0.1, "holds": 0.1, "parameters": 0.05}
# For what holds of a method: the words where it does and where it does not.
_HOLDS: dict[str, tuple[str, str, Callable[[Properties], bool]]] = {
    "merges": ("merges", "does not merge", lambda one: one.mergeable),
    "identity": ("starts as the frozen model", "does not start as the frozen model", lambda one: one.identity),
    "structure": (
        "leaves the way through the blocks as it is",
        "stands in the way through the blocks",
        lambda one: one.keeps_structure,
    ),
    "shares": ("has tensors that serve several places", "has tensors of its own at each place", lambda one: one.shares),
    "data": ("looks at images first", "looks at no images first", lambda one: one.reads_data),
    "gradients": (
        "has gradients in the frozen backbone",
        "has no gradient in the frozen backbone",
        lambda one: one.reach != "none",
    ),
}


@dataclass(frozen=True)
class Neighbour:
    """A method near another one.

    Attributes:
        method: its name.
        likeness: from 0 to 1, where the patterns of the edits are equal.
        difference: a sentence that begins with the name of the one it is about.
    """

    method: str
    likeness: float
    difference: str


def neighbours(one: Properties, others: Iterable[Properties], count: int = 3) -> list[Neighbour]:
    """The methods near `one`: those that it builds on, and the `count` most alike; most alike first."""
    found = [(likeness(one, other), other) for other in others if other.name != one.name]
    found.sort(key=lambda pair: (-pair[0], pair[1].name))
    alike = {other.name for like, other in found[:count] if like >= NEAR}
    parents = {relation.method for relation in facts_of(one.name).builds_on}
    chosen = [(like, other) for like, other in found if other.name in alike | parents]
    return [Neighbour(other.name, like, difference(one, other)) for like, other in chosen]


def likeness(one: Properties, other: Properties) -> float:
    """From 0 to 1: how alike the patterns of two methods' edits are, to three decimals."""
    ratio = math.log10(max(one.parameters, 1) / max(other.parameters, 1))
    parts = {
        "places": _overlap((*one.places, *one.reads), (*other.places, *other.reads)),
        "verbs": _overlap(_ways(one), _ways(other)),
        "trains": _overlap(one.trains, other.trains),
        "keeps": _overlap(one.keeps, other.keeps),
        "holds": sum(holds(one) == holds(other) for _, _, holds in _HOLDS.values()) / len(_HOLDS),
        "parameters": max(0.0, 1 - abs(ratio) / 2),
    }
    return round(sum(_WEIGHTS[name] * part for name, part in parts.items()), 3)


def difference(one: Properties, other: Properties) -> str:
    """What differs between two methods, as a sentence that begins with the name of the one it is about."""
    return _stated(one.name, other.name) or f"{other.name}: {_computed(other, one)}"


def built_on(method: str, names: Iterable[str]) -> list[str]:
    """The methods among `names` whose facts say that they build on `method`."""
    return [name for name in names if any(one.method == method for one in facts_of(name).builds_on)]


def _stated(one: str, other: str) -> str | None:
    for name, rest in ((other, one), (one, other)):
        sentence = facts_of(name).difference_from(rest)
        if sentence is not None:
            return f"{name}: {sentence}"
    return None


def _computed(one: Properties, other: Properties) -> str:
    """How `one` differs from `other`, from their properties."""
    said = [
        _instead("acts at", "does not act at", _short(one.places), _short(other.places)),
        _instead("reads", "does not read", _short(one.reads), _short(other.reads)),
        _instead("by", "not by", _ways(one), _ways(other)),
        _instead("trains", "does not train", one.trains, other.trains),
        _instead("keeps frozen", "keeps no frozen", one.keeps, other.keeps),
        *(yes if holds(one) else no for yes, no, holds in _HOLDS.values() if holds(one) != holds(other)),
    ]
    told = [part for part in said if part] or ["the same places, verbs and shapes, by another formula"]
    if one.parameters != other.parameters:
        told.append(f"{one.parameters:,} numbers train instead of {other.parameters:,}")
    return "; ".join(told) + "."


def _ways(one: Properties) -> tuple[str, ...]:
    """The verbs, where a branch beside a weight and a change of the weight are the same if both fold into it."""
    weight = "a change of the weight"
    ways = (weight if one.mergeable and verb in ("parallel", "reparametrize") else verb for verb in one.verbs)
    return tuple(dict.fromkeys(ways))


def _instead(verb: str, contrary: str, own: Collection[str], others: Collection[str]) -> str:
    """What only the one has and what only the other has; empty where both have the same."""
    more, less = (", ".join(x for x in a if x not in b) for a, b in ((own, others), (others, own)))
    if more and less:
        return f"{verb} {more} instead of {less}"
    return f"{verb} {more} too" if more else f"{contrary} {less}" if less else ""


def _short(places: Iterable[str]) -> tuple[str, ...]:
    return tuple(place.removeprefix("blocks.*.") if place != "blocks.*" else "blocks" for place in places)


def _overlap(one: Collection[str], other: Collection[str]) -> float:
    """The common part of two sets as a share of both; 1 for two empty ones."""
    both = {*one} | {*other}
    return len({*one} & {*other}) / len(both) if both else 1.0
