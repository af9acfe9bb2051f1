"""Splits that depend on the names of the images and the seed alone, stratified by class.

Within a class images are ranked by sha256(seed, name): no random generator, so the split is the same on every platform
and version, and adding images moves few of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import floor

from vpeft.data.items import Item


def rank(seed: int, name: str) -> str:
    """The place of `name` in the shuffled order of `seed`."""
    return hashlib.sha256(f"{seed}\n{name}".encode()).hexdigest()


def hold_out(
    items: Sequence[Item],
    fraction: float,
    seed: int,
    groups: Mapping[str, str] | None = None,
    strata: Mapping[str, str] | None = None,
) -> tuple[list[Item], list[Item]]:
    """(kept, held out): `fraction` of `items`, of each class its due share, at least one of each class kept.

    Shares are rounded by largest remainder, so that the total is round(fraction * N) where the classes allow it.
    `groups` maps names to a key: images with the same key are copies of each other and stay on one side. `strata` maps
    names to what takes the place of the class. Order is kept.
    """
    units: dict[str, dict[str, list[Item]]] = {}
    owner: dict[str, str] = {}
    for item in sorted(items, key=lambda item: item.name):
        key = item.name if groups is None else groups.get(item.name, item.name)
        # A copy under another label goes along with the first: the pixels must not be on both sides.
        label = owner.setdefault(key, item.label if strata is None else strata[item.name])
        units.setdefault(label, {}).setdefault(key, []).append(item)

    taken = _shares({label: len(of_label) for label, of_label in units.items()}, fraction)
    out: set[str] = set()
    for label, of_label in units.items():
        shuffled = sorted(of_label.values(), key=lambda unit: rank(seed, unit[0].name))
        out.update(item.name for unit in shuffled[: taken[label]] for item in unit)
    return [item for item in items if item.name not in out], [item for item in items if item.name in out]


def _shares(sizes: Mapping[str, int], fraction: float) -> dict[str, int]:
    """How many of each class to hold out, by largest remainder, leaving at least one of each."""
    due = {label: size * fraction for label, size in sizes.items()}
    taken = {label: min(floor(due[label]), size - 1) for label, size in sizes.items()}
    missing = floor(sum(sizes.values()) * fraction + 0.5) - sum(taken.values())
    by_remainder = sorted(sizes, key=lambda label: (taken[label] - due[label], label))
    for label in by_remainder:
        if missing <= 0:
            break
        if taken[label] < sizes[label] - 1:
            taken[label] += 1
            missing -= 1
    return taken


def at_most(items: Sequence[Item], per_class: int, seed: int, strata: Mapping[str, str] | None = None) -> list[Item]:
    """At most `per_class` items of each class, chosen by rank; order is kept, and a larger limit keeps a superset.

    `strata` maps names to what takes the place of the class.
    """
    chosen: set[str] = set()
    count: dict[str, int] = {}
    for item in sorted(items, key=lambda item: rank(seed, item.name)):
        label = item.label if strata is None else strata[item.name]
        if count.setdefault(label, 0) < per_class:
            count[label] += 1
            chosen.add(item.name)
    return [item for item in items if item.name in chosen]
