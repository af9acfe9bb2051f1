"""Each promise of `checks`: for each method once, and on each family for methods that have every edit pattern.

A test is a cell, a method on a family: its checks share one trained model. The patterns, and which methods stand for
them, are in `patterns`. `make matrix` runs every method on every family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.contract.checks import FAST, OF_FAMILIES, SLOW, Cell, hold, shares_a_batch
from tests.contract.matrix import cell_or_refusal
from tests.contract.patterns import all_patterns, cells_for_every_pattern, one_cell_each
from tests.contract.refusals import difference, kind_of, refuses
from tests.families import EVERY
from tests.models import FAMILIES
from vpeft.methods import all_methods

THREE = list(FAMILIES)
EACH = one_cell_each(all_methods(), THREE, refuses)
CELLS = [*EACH, *cells_for_every_pattern(THREE, all_patterns(), refuses, EACH)]
# on the other families the promises that depend on the backbone, and methods that none of the three takes
OTHERS = [family for family in EVERY if family not in FAMILIES]
NOWHERE = one_cell_each(sorted(set(all_methods()) - {name for name, _ in EACH}), OTHERS, refuses)
CELLS_ON_OTHERS = [*NOWHERE, *cells_for_every_pattern(OTHERS, all_patterns(), refuses, NOWHERE)]
# `make matrix` leaves this one out on these families: it says more of the pattern than of each method and takes long,
# so a third of the cells, in turn, have it
SHARED = {cell for number, cell in enumerate(CELLS_ON_OTHERS) if number % 3 == 0}


def _ids(cells: Sequence[tuple[str, str]]) -> list[str]:
    return [f"{name}-{family}" for name, family in cells]


def _run(checks: Sequence[Callable[[Cell], None]], name: str, family: str) -> None:
    """Run checks on one cell and report all that fail."""
    cell, refusal = cell_or_refusal(name, family)
    changed = difference("methods", name, family, refusal and kind_of(refusal))
    assert changed is None, changed
    if cell is None:
        assert len(str(refusal)) > 40
        pytest.skip(f"refused: {refusal}")
    failed: list[Exception] = []
    for check in checks:
        try:
            declared = hold(check, cell)
            assert declared is None or len(declared.reason) > 20
        except Exception as error:
            error.add_note(f"{check.__name__}, {name} on {family}")
            failed.append(error)
    if failed:
        raise failed[0] if len(failed) == 1 else ExceptionGroup(f"{len(failed)} checks fail", failed)


@pytest.mark.parametrize(("name", "family"), CELLS, ids=_ids(CELLS))
def test_promises(name: str, family: str) -> None:
    _run(FAST, name, family)


@pytest.mark.parametrize(("name", "family"), CELLS_ON_OTHERS, ids=_ids(CELLS_ON_OTHERS))
def test_promises_on_every_family(name: str, family: str) -> None:
    more = (shares_a_batch,) if (name, family) in SHARED else ()
    _run((*more, *OF_FAMILIES), name, family)


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", all_methods())
def test_slow_promise(name: str, family: str, check: Callable[[Cell], None]) -> None:
    _run([check], name, family)


def test_every_method_is_tried_and_every_family_with_each_verb_that_any_method_has_there() -> None:
    cells = [*CELLS, *CELLS_ON_OTHERS]
    assert len(cells) == len(set(cells))
    taken = {name for name in all_methods() if not all(refuses(name, family) for family in EVERY)}
    assert {name for name, _ in cells} == taken
    patterns = all_patterns()
    for family in EVERY:
        has = frozenset[str]().union(*(patterns[name] for name in all_methods() if not refuses(name, family)))
        tried = frozenset[str]().union(*(patterns[name] for name, place in cells if place == family))
        assert tried == has, family
