"""Where a method stands in the literature is data on the method itself, and complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

import pytest

from vpeft.method import _METHODS, Category, Family, Method, register
from vpeft.methods import all_methods

# Only the package's own: other tests and the examples register methods too.
METHODS = {name: kind for name, kind in all_methods().items() if kind.__module__.startswith("vpeft.")}
FAMILIES_OF = {
    "baseline": {"baseline"},
    "addition": {"adapter", "prompt", "prefix", "side"},
    "partial": {"specification", "reparameter"},
    "unified": {"unified"},
    "multi-task": {"adapter", "prompt", "reparameter"},
}


@pytest.mark.parametrize("name", METHODS)
def test_category_and_family_fit(name: str) -> None:
    kind = METHODS[name]
    assert kind.category in get_args(Category) and kind.family in get_args(Family)
    assert kind.family in FAMILIES_OF[kind.category]


@pytest.mark.parametrize("name", [name for name, kind in METHODS.items() if kind.paper])
def test_a_paper_has_a_year_and_a_venue(name: str) -> None:
    kind = METHODS[name]
    assert kind.year is not None and kind.venue
    arxiv = re.fullmatch(r"(\d\d)\d\d\.\d{4,5}", kind.paper)
    if arxiv is None:
        assert kind.paper == f"{kind.venue} {kind.year}"
    else:
        # A paper appears in the year of its preprint or up to two years later, in a journal up to three.
        first = 2000 + int(arxiv[1])
        assert first <= kind.year <= first + {"arXiv": 0, "IJCV": 3}.get(kind.venue, 2)


def test_what_has_no_paper_has_no_year() -> None:
    without = {name for name, kind in METHODS.items() if not kind.paper}
    assert without == {"full_finetuning", "linear_probe", "merging_and_norms"}
    assert all(METHODS[name].year is None and not METHODS[name].venue for name in without)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(_METHODS)
    yield
    _METHODS.clear()
    _METHODS.update(before)


@pytest.mark.usefixtures("registry")
def test_the_category_follows_the_family_where_it_is_not_given() -> None:
    class Own(Method):
        """A stand-in."""

        def edits(self, backbone: object) -> Iterator[object]:  # type: ignore[override]
            return iter(())

    assert register("own", family="prompt")(Own).category == "addition"
    assert register("own", family="prompt", category="multi-task")(Own).category == "multi-task"
