"""Each promise of `checks`, or a refusal that says what is missing: every method on three unlike families, five unlike
methods on every family. `make matrix` runs every method on every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract.checks import FAST, OF_FAMILIES, SLOW, Cell, hold, shares_a_batch
from tests.contract.matrix import cell_or_refusal
from tests.contract.refusals import difference, kind_of
from tests.families import EVERY
from tests.models import FAMILIES
from vpeft.methods import all_methods

CELLS = [pytest.param(name, family, id=f"{name}-{family}") for name in all_methods() for family in FAMILIES]
# inside a projection, on its output, beside the MLP, as tokens, and beside the whole trunk
FIVE = ("lora", "ssf", "adaptformer", "vpt_deep", "lst")
OTHERS = [
    pytest.param(name, family, id=f"{name}-{family}") for family in EVERY if family not in FAMILIES for name in FIVE
]


def _run(check: Callable[[Cell], None], name: str, family: str) -> None:
    cell, refusal = cell_or_refusal(name, family)
    changed = difference("methods", name, family, refusal and kind_of(refusal))
    assert changed is None, changed
    if cell is None:
        assert len(str(refusal)) > 40
        pytest.skip(f"refused: {refusal}")
    declared = hold(check, cell)
    assert declared is None or len(declared.reason) > 20


@pytest.mark.parametrize("check", FAST, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "family"), CELLS)
def test_promise(name: str, family: str, check: Callable[[Cell], None]) -> None:
    _run(check, name, family)


# `make matrix` leaves the last one out, which says more of the five than of all methods and takes long
@pytest.mark.parametrize("check", [*OF_FAMILIES, shares_a_batch], ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "family"), OTHERS)
def test_promise_on_every_family(name: str, family: str, check: Callable[[Cell], None]) -> None:
    _run(check, name, family)


@pytest.mark.slow
@pytest.mark.parametrize("check", SLOW, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "family"), CELLS)
def test_slow_promise(name: str, family: str, check: Callable[[Cell], None]) -> None:
    _run(check, name, family)
