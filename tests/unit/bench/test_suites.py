"""The suites as Python sees them: by name, whole, and runnable."""

from __future__ import annotations

from pathlib import Path

import pytest

import vpeft
from vpeft.bench import BenchConfig, run_bench
from vpeft.bench.record import State
from vpeft.bench.suite import Suite, UnknownSuite


def test_suites_are_found_by_name() -> None:
    assert {"digits", "pocket"} <= set(vpeft.suites.names())
    assert set(vpeft.suites.names()) <= set(dir(vpeft.suites))
    pocket: Suite = vpeft.suites.pocket()
    assert pocket.name == "pocket"
    assert len(pocket.tasks) == 9
    assert {"smoke", "quick", "full"} <= set(pocket.tiers)


def test_a_wrong_name_offers_the_nearest() -> None:
    with pytest.raises(UnknownSuite, match="pocket"):
        vpeft.suites.pockett()


def test_a_suite_runs_from_python(tmp_path: Path) -> None:
    """One run of the shortest tier; called again, nothing is done twice."""
    config = BenchConfig(
        suite="pocket", methods=("linear_probe",), tier="smoke", tasks=("orientation",), out=tmp_path, show=False
    )
    for _ in range(2):
        ledger = run_bench(config)
    records = list(ledger)
    assert len(records) == 1
    assert records[0].state is State.done
    assert records[0].scores is not None and records[0].scores.count == 1200
