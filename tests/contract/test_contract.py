"""Each promise of `checks`, or a refusal that says what is missing: every method on three unlike families, five unlike
methods on every family. `make matrix` runs every method on every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vpeft
from tests.contract.checks import FAST, OF_FAMILIES, SLOW, Cell, shares_a_batch
from tests.contract.matrix import cell_or_refusal
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
    if cell is None:
        assert refusal is not None and len(refusal) > 40
        pytest.skip(f"refused: {refusal}")
    reason = cell.method.exceptions.get(check.__name__)
    if reason is not None:
        assert len(reason) > 20
        with pytest.raises((AssertionError, RuntimeError, vpeft.VpeftError)):
            check(cell)
        return
    check(cell)


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
