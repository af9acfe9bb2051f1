"""Splits: stratified, deterministic, and with copies kept on one side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from vpeft.data.items import FilePicture, Item
from vpeft.data.splits import at_most, hold_out


def _items(**sizes: int) -> list[Item]:
    return [
        Item(f"{label}/{index:03d}.png", label, FilePicture(Path("nowhere")))
        for label, size in sizes.items()
        for index in range(size)
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.15, 0.2, 0.5, 0.9])
def test_shares(fraction: float) -> None:
    items = _items(a=100, b=53, c=7, d=2, e=1)
    kept, out = hold_out(items, fraction, seed=0)
    assert sorted(item.name for item in [*kept, *out]) == sorted(item.name for item in items)
    counts, held = Counter(item.label for item in items), Counter(item.label for item in out)
    for label, count in counts.items():
        assert held[label] < count  # something of each class is left to train on
        assert abs(held[label] - count * fraction) <= 1 or held[label] == count - 1
    # 0.9 of one image and of two cannot be held out without emptying their class.
    assert len(out) == {0.0: 0, 0.1: 16, 0.15: 24, 0.2: 33, 0.5: 82, 0.9: 146}[fraction]


def test_total_is_right_with_many_small_classes() -> None:
    items = _items(**{f"c{index:03d}": 5 for index in range(100)})
    assert len(hold_out(items, 0.15, seed=0)[1]) == 75  # cutting each share off would give 0


def test_same_seed_same_split_whatever_the_order() -> None:
    items = _items(a=40, b=40)
    first = {item.name for item in hold_out(items, 0.25, seed=3)[1]}
    again = {item.name for item in hold_out(items[::-1], 0.25, seed=3)[1]}
    other = {item.name for item in hold_out(items, 0.25, seed=4)[1]}
    assert first == again != other


def test_the_split_of_today_is_that_of_tomorrow() -> None:
    """By `printf "0\na/000.png" | sha256sum` and so on, sorted: results on a changed split could not be compared."""
    out = hold_out(_items(a=10, b=10), 0.2, seed=0)[1]
    assert [item.name for item in out] == ["a/000.png", "a/007.png", "b/003.png", "b/008.png"]


def test_adding_images_moves_few() -> None:
    before = {item.name for item in hold_out(_items(a=200), 0.2, seed=0)[1]}
    after = {item.name for item in hold_out(_items(a=205), 0.2, seed=0)[1]}
    assert len(before - after) <= 5


def test_copies_stay_together() -> None:
    items = _items(a=40, b=40)
    groups = {item.name: f"pair {index // 2}" for index, item in enumerate(items)}
    kept, out = hold_out(items, 0.25, seed=0, groups=groups)
    assert not {groups[item.name] for item in kept} & {groups[item.name] for item in out}
    assert len(out) == 20


def test_copies_under_two_labels_stay_together() -> None:
    items = _items(a=20, b=20)
    groups = {item.name: item.name.split("/")[1] for item in items}  # each of a has a copy in b
    kept, out = hold_out(items, 0.3, seed=0, groups=groups)
    assert out
    again = hold_out(items[::-1], 0.3, seed=0, groups=groups)[1]
    assert {item.name for item in again} == {item.name for item in out}
    assert not {groups[item.name] for item in kept} & {groups[item.name] for item in out}


def test_at_most() -> None:
    items = _items(a=30, b=4)
    few, more = at_most(items, 3, seed=0), at_most(items, 8, seed=0)
    assert Counter(item.label for item in few) == {"a": 3, "b": 3}
    assert Counter(item.label for item in more) == {"a": 8, "b": 4}
    assert {item.name for item in few} <= {item.name for item in more}
    assert at_most(items[::-1], 3, seed=0) == few[::-1]
