"""Facts from the literature: each file is a method's, complete, and says nothing that was only remembered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vpeft.taxonomy
from vpeft.methods import all_methods
from vpeft.taxonomy.facts import Facts, facts_of
from vpeft.taxonomy.genealogy import appeared

FOLDER = Path(vpeft.taxonomy.__file__).parent / "facts"
OWN = sorted(name for name, kind in all_methods().items() if kind.__module__.startswith("vpeft."))


def test_each_file_is_a_methods() -> None:
    assert {path.stem for path in FOLDER.glob("*")} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_what_is_said_is_whole(name: str) -> None:
    facts = facts_of(name)
    for sentence in (facts.recipe, *facts.traps):
        assert not sentence or re.fullmatch(r"\S.*[.]", sentence), sentence
    for figure in facts.published:
        assert re.search(r"\d", figure.figure), figure
        assert re.search(r"README|paper|table", figure.source), f"{figure} does not say where it was read"


@pytest.mark.parametrize("name", OWN)
def test_what_a_method_builds_on_is_a_method_and_is_not_younger(name: str) -> None:
    facts, own = facts_of(name), appeared(all_methods()[name])
    related = [one.method for one in (*facts.builds_on, *facts.beside)]
    assert len(related) == len(set(related)) and name not in related
    for relation in (*facts.builds_on, *facts.beside):
        assert relation.method in OWN, f"{name} names {relation.method}, which is no method"
        assert re.fullmatch(r"[A-Z].*[.]", relation.difference), relation
    for relation in facts.builds_on:
        older = appeared(all_methods()[relation.method])
        assert own is None or older is None or older <= own, f"{name} is older than {relation.method}"


def test_nothing_descends_from_itself() -> None:
    parents = {name: {one.method for one in facts_of(name).builds_on} for name in OWN}
    while parents:
        roots = {name for name, above in parents.items() if not above & set(parents)}
        assert roots, f"a circle: {sorted(parents)}"
        parents = {name: above for name, above in parents.items() if name not in roots}


@pytest.mark.parametrize("name", OWN)
def test_what_has_a_paper_has_its_title(name: str) -> None:
    assert bool(all_methods()[name].paper) == bool(facts_of(name).title)


def test_the_methods_of_the_bench_have_recipe_and_traps() -> None:
    for name in ("lora", "adaptformer", "vpt_deep", "lst", "noah", "gps", "hst", "mona"):
        assert facts_of(name).recipe and facts_of(name).traps


def test_a_method_without_a_file_has_none() -> None:
    assert facts_of("no_such_method") == Facts()
