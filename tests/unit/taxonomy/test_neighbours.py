"""Nearness is computed from properties; what differs is the sentence of a facts file, or the properties that differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.taxonomy.examples import DIAGONAL, EVERY, ONE, SIDE, TWIN

from vpeft.taxonomy import neighbours as near
from vpeft.taxonomy.facts import Facts, Relation
from vpeft.taxonomy.neighbours import NEAR, built_on, difference, likeness, neighbours


@pytest.fixture(autouse=True)
def _no_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "facts_of", lambda name: Facts())


def states(monkeypatch: pytest.MonkeyPatch, method: str, about: str, sentence: str, descent: bool = True) -> None:
    relation = (Relation(method=about, difference=sentence),)
    facts = Facts(builds_on=relation) if descent else Facts(beside=relation)
    monkeypatch.setattr(near, "facts_of", lambda name: facts if name == method else Facts())


def test_likeness_is_one_for_one_pattern_and_falls_with_each_difference() -> None:
    assert likeness(ONE, TWIN) == 1
    assert likeness(ONE, SIDE) < NEAR <= likeness(ONE, replace(ONE, verbs=("after",))) < 1
    assert likeness(ONE, SIDE) == likeness(SIDE, ONE)
    changed = (
        {"places": ("blocks.*.attn.q",)},
        {"reads": ("blocks.*",)},
        {"trains": ("D",)},
        {"keeps": ("D x r",)},
        {"mergeable": False},
        {"shares": True},
        {"parameters": 2000},
    )
    for fields in changed:
        assert likeness(ONE, replace(ONE, **fields)) < 1, fields  # type: ignore[arg-type]


def test_a_branch_beside_a_weight_and_a_change_of_it_are_alike_where_both_fold_in() -> None:
    changed = replace(ONE, name="changed", verbs=("reparametrize",))
    assert likeness(ONE, changed) == 1 and "formula" in difference(ONE, changed)
    apart = [replace(one, mergeable=False) for one in (ONE, changed)]
    assert likeness(*apart) < 1 and "by reparametrize instead of parallel" in difference(*apart)


def test_the_most_alike_come_first_and_far_ones_are_left_out() -> None:
    assert [one.method for one in neighbours(ONE, EVERY)] == ["twin", "diagonal"]
    assert [one.method for one in neighbours(ONE, EVERY, count=1)] == ["twin"]
    assert not neighbours(SIDE, (SIDE, ONE))


def test_a_parent_is_named_however_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    states(monkeypatch, "side", "one", "One, but beside.")
    (found,) = neighbours(SIDE, (SIDE, ONE))
    assert (found.method, found.difference) == ("one", "side: One, but beside.")
    assert not neighbours(ONE, (ONE, SIDE)), "a child is near only where it is alike"
    assert built_on("one", ["one", "side", "twin"]) == ["side"]


@pytest.mark.parametrize("descent", [True, False])
def test_a_stated_difference_serves_both_directions(monkeypatch: pytest.MonkeyPatch, descent: bool) -> None:
    states(monkeypatch, "diagonal", "one", "One with a diagonal between.", descent)
    assert difference(ONE, DIAGONAL) == difference(DIAGONAL, ONE) == "diagonal: One with a diagonal between."
    assert built_on("one", ["diagonal"]) == (["diagonal"] if descent else [])


def test_a_difference_is_computed_where_none_is_stated() -> None:
    assert difference(ONE, DIAGONAL) == (
        "diagonal: trains D, r instead of D x r, r x D; keeps frozen D x r, r x D too;"
        " 60 numbers train instead of 1,000."
    )
    assert "formula" in difference(ONE, TWIN)
    said = difference(ONE, SIDE)
    for part in ("acts at outlet instead of attn.q, attn.v", "reads blocks too", "does not merge", "no gradient"):
        assert part in said
