"""The benchmark with vpeft's own training, from run to page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vpeft.bench import BenchConfig, Ledger, RunRecord, State, run_bench
from vpeft.report import make_report

METHODS = ("linear_probe", "lora(rank=4)")


def config(out: Path, **rest: object) -> BenchConfig:
    return BenchConfig.model_validate(
        {
            "suite": "digits",
            "tier": "smoke",
            "methods": METHODS,
            "out": out,
            "show": False,
            "optimisation": {"epochs": 2, "device": "cpu"},
            **rest,
        }
    )


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return run_bench(config(tmp_path_factory.mktemp("bench") / "ledger"))


def by_label(ledger: Ledger) -> dict[str, RunRecord]:
    return {record.label: record for record in ledger}


def test_methods_are_trained_tested_and_weighed(ledger: Ledger) -> None:
    assert ledger.states() == {State.done: 2}, [record.error for record in ledger]
    probe, lora = by_label(ledger)["linear_probe"], by_label(ledger)["lora(rank=4)"]
    for record in (probe, lora):
        assert record.scores is not None
        assert record.scores.count == 797
        assert record.scores.legacy_best_on_test is None
        assert record.departures == {"epochs": 2}
        assert len(record.history) == 2
    # Chance is 0.1, and two epochs are few.
    assert lora.scores is not None
    assert lora.scores.value > 0.15
    assert probe.costs is not None
    assert lora.costs is not None
    assert (probe.costs.trainable, lora.costs.trainable) == (0, 15_360)
    # 160 features to 10 classes.
    assert probe.costs.trainable_with_head == 1_610
    assert (probe.costs.reach, lora.costs.reach) == ("none", "full")
    assert probe.costs.saved_bytes is not None
    assert lora.costs.saved_bytes is not None
    assert probe.costs.saved_bytes < lora.costs.saved_bytes / 10, "a linear probe keeps no activations of the backbone"
    # 1,000 images in batches of 32, twice.
    assert lora.costs.steps == 64
    assert lora.costs.step_seconds is not None
    assert lora.identity.methods[0].fields["rank"] == 4
    assert len(lora.identity.weights) == 64


def test_it_is_not_done_again(ledger: Ledger) -> None:
    before = {path: path.stat().st_mtime_ns for path in ledger.runs.iterdir()}
    run_bench(config(ledger.path))
    assert {path: path.stat().st_mtime_ns for path in ledger.runs.iterdir()} == before


def test_the_report_of_it(ledger: Ledger, tmp_path: Path) -> None:
    report = make_report(ledger.path, html=tmp_path / "page.html", png=tmp_path / "picture.png")
    (board,) = report.boards
    assert {row.label for row in board.rows} == set(METHODS)
    assert "Departs from digits-smoke@1: epochs = 2" in board.notes[0]
    assert all(row.complete for row in board.rows)
    assert "point-0-1" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_workers_and_peeking_change_no_number(ledger: Ledger, tmp_path: Path) -> None:
    other = run_bench(config(tmp_path / "ledger", workers=2, legacy_best_on_test=True))
    for label, record in by_label(ledger).items():
        again = by_label(other)[label]
        assert again.key == record.key
        assert record.scores is not None
        assert again.scores is not None
        best = again.scores.legacy_best_on_test
        assert best is not None
        assert best >= again.scores.value
        assert again.scores.model_copy(update={"legacy_best_on_test": None}) == record.scores
        assert [epoch["train_loss"] for epoch in again.history] == [epoch["train_loss"] for epoch in record.history]


SCRIPT = """
import sys
from pathlib import Path
from tests.e2e.test_bench import config
from vpeft.bench import run_bench

if __name__ == "__main__":
    run_bench(config(Path(sys.argv[1]), methods=("lora(rank=4)",)))
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_from_its_checkpoint_bit_by_bit(ledger: Ledger, tmp_path: Path) -> None:
    unkilled = by_label(ledger)["lora(rank=4)"]
    script = tmp_path / "bench_script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, str(script), str(tmp_path / "ledger")]
    killed = Ledger(tmp_path / "ledger")
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 300
    checkpoint = killed.path / ".work" / unkilled.key / "checkpoint.safetensors"
    while not checkpoint.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert killed.states() == {State.running: 1}
    assert subprocess.run(command, env=environment, timeout=600, check=False).returncode == 0
    (record,) = killed
    assert record.attempts == 2
    assert record.scores == unkilled.scores
    assert [epoch["train_loss"] for epoch in record.history] == [epoch["train_loss"] for epoch in unkilled.history]
    assert not checkpoint.exists()


@pytest.mark.slow
def test_an_untrained_backbone_is_another_run(ledger: Ledger, tmp_path: Path) -> None:
    other = run_bench(config(tmp_path / "ledger", methods=("linear_probe",), backbone="random:pocket_vit"))
    (record,) = other
    probe = by_label(ledger)["linear_probe"]
    assert record.identity.weights != probe.identity.weights
    assert record.key != probe.key
    assert record.state is State.done
