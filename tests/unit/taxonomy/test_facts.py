"""Facts from the literature: each file is a method's, complete, and says nothing that was only remembered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vpeft.taxonomy
from vpeft.methods import all_methods
from vpeft.taxonomy.facts import Facts, facts_of

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


def test_the_methods_of_the_bench_have_recipe_and_traps() -> None:
    for name in ("lora", "adaptformer", "vpt_deep", "lst", "noah", "gps", "hst", "mona"):
        assert facts_of(name).recipe and facts_of(name).traps


def test_a_method_without_a_file_has_none() -> None:
    assert facts_of("no_such_method") == Facts()
