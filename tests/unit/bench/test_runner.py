"""The runner: what is planned, skipped, shared, chosen; what failures and deaths do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vpeft.atomic import DiskFull, disk_full
from vpeft.bench import BenchConfig, Ledger, RunRecord, State, run_bench
from vpeft.bench.engine import Assignment
from vpeft.bench.execute import out_of_memory
from vpeft.bench.executors import ExecutorSettings, UnknownExecutor, executors
from vpeft.bench.executors.executor import UnsuitableExecutor, register_executor
from vpeft.bench.executors.serial import SerialExecutor
from vpeft.bench.plan import UnknownSetting, make_plan
from vpeft.bench.protocol import PROTOCOLS
from vpeft.bench.splits import Split, SplitArrays
from vpeft.bench.suite import UnknownSuite, UnknownTask
from vpeft.bench.suites import open_task, suites
from vpeft.errors import VpeftError

from .stand_in import NoSuchMethod, StandIn


def config(tmp_path: Path, *methods: str, tier: str = "quick", **rest: object) -> BenchConfig:
    return BenchConfig.model_validate(
        {"suite": "digits", "tier": tier, "methods": methods, "out": tmp_path / "ledger", "show": False, **rest}
    )


def log(tmp_path: Path) -> Counter[str]:
    """How often each run was started, and ended, by any process."""
    path = tmp_path / "log"
    return Counter(" ".join(line.split()[:2]) for line in path.read_text().splitlines()) if path.exists() else Counter()


def started(tmp_path: Path) -> int:
    return sum(count for event, count in log(tmp_path).items() if event.startswith("start"))


def by_label(ledger: Ledger, purpose: str = "final") -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for record in ledger:
        if record.identity.purpose == purpose:
            found.setdefault(record.label, []).append(record)
    return found


def test_every_method_gets_every_seed_and_a_second_call_does_nothing(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    ledger = run_bench(config(tmp_path, "good,poor(noise=100)"), engine=engine)
    assert ledger.states() == {State.done: 6}
    runs = by_label(ledger)
    assert set(runs) == {"good", "poor(noise=100)"}
    assert sorted(record.identity.seed for record in runs["good"]) == [0, 1, 2]
    first = runs["good"][0]
    assert first.scores is not None
    assert first.scores.split == "test"
    # A nearest mean finds about nine digits in ten.
    assert first.scores.value > 0.8
    assert first.scores.count == 797
    assert first.costs is not None
    assert first.costs.trainable == 1_000_000, "trained on the 800 and the 200 together"
    assert first.costs.wall_seconds is not None
    assert first.costs.wall_seconds > 0
    assert first.chosen is not None
    assert first.chosen.lr == 2e-3
    assert first.provenance is not None
    assert first.provenance.versions["vpeft"]
    assert "core" in first.provenance.hardware
    assert first.attempts == 1

    again = run_bench(config(tmp_path, "good,poor(noise=100)"), engine=engine)
    assert started(tmp_path) == 6
    assert list(again) == list(ledger)


def test_a_protocol_that_validates_leaves_the_validation_split_out_and_scores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = suites()["digits"].tier("quick")
    rules = PROTOCOLS[tier.protocol].model_copy(update={"name": "digits-validated", "validates": True})
    monkeypatch.setitem(PROTOCOLS, rules.id, rules)
    monkeypatch.setitem(suites()["digits"].tiers, "validated", replace(tier, protocol=rules.id))  # type: ignore[arg-type]
    engine = StandIn(tmp_path / "log")
    ledger = run_bench(config(tmp_path, "good,poor", tier="validated", seeds=1), engine=engine)
    assert started(tmp_path) == 2, "one training for each method"
    validated = {}
    for label, (record,) in by_label(ledger).items():
        assert record.costs is not None and record.chosen is not None and record.scores is not None
        assert record.costs.trainable == 800_000, "trained on the 800 alone"
        assert (record.scores.split, record.scores.count) == ("test", 797)
        assert record.chosen.rule == "stated by the protocol"
        validated[label] = record.chosen.validation
    task = open_task("digits", "classes")
    assert isinstance(task.val, SplitArrays) and isinstance(task.train, SplitArrays)
    means = [task.train.pixels[task.train.labels == k].mean(axis=0) for k in range(10)]
    distance = [((task.val.pixels - mean) ** 2).mean(axis=(1, 2, 3)) for mean in means]
    assert validated["good"] == pytest.approx(float((np.argmin(distance, axis=0) == task.val.labels).mean()))
    assert validated["poor"] is not None and validated["poor"] < validated["good"]


def test_more_seeds_or_methods_only_add(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    run_bench(config(tmp_path, "good", seeds=1), engine=engine)
    run_bench(config(tmp_path, "good", seeds=2), engine=engine)
    ledger = run_bench(config(tmp_path, "good", "poor", seeds=2), engine=engine)
    assert started(tmp_path) == 4
    assert len(ledger) == 4


def test_the_search_is_done_once_on_validation_and_refitted_for_every_seed(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    ledger = run_bench(config(tmp_path, "good", tier="full"), engine=engine)
    search = by_label(ledger, "search")["good"]
    finals = by_label(ledger)["good"]
    assert (len(search), len(finals)) == (3, 3)
    for record in search:
        assert record.scores is not None
        assert (record.scores.split, record.scores.count) == ("val", 200)
        assert record.identity.seed == 0
        assert record.costs is not None
        assert record.costs.trainable == 800_000, "trained on the 800 alone"
    for record in finals:
        assert record.chosen is not None
        # Rates above 2e-3 are made worse in the stand-in; of the two others, equal there, the smaller wins the tie.
        assert (record.chosen.lr, record.chosen.weight_decay) == (5e-4, 1e-4)
        assert set(record.chosen.searched) == {found.key for found in search}
    run_bench(config(tmp_path, "good", tier="full", seeds=5), engine=engine)
    assert started(tmp_path) == 3 + 5, "the search is not redone for more seeds"


def test_whole_weights_are_searched_on_their_own_grid(tmp_path: Path) -> None:
    jobs = make_plan(config(tmp_path, "full_finetuning", tier="full"), StandIn(tmp_path / "log"))
    assert {job.point.lr for job in jobs if job.point is not None} == {5e-5, 2e-4, 8e-4}


def test_one_failed_run_ends_nothing(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    ledger = run_bench(config(tmp_path, "broken,hungry,good", seeds=1, show=True), engine=engine, console=console)
    console.file.close()
    runs = {label: records[0] for label, records in by_label(ledger).items()}
    assert {label: record.state.value for label, record in runs.items()} == {
        "broken": "failed",
        "hungry": "out_of_memory",
        "good": "done",
    }
    error = runs["broken"].error
    assert error is not None
    assert (error.kind, error.message) == ("ZeroDivisionError", "the method divides by zero")
    assert "stand_in.py" in error.trace
    assert str(Path.cwd()) not in error.trace, "a record names no folders of this machine"
    text = console.export_text()
    assert "failed  digits/classes  broken  seed 0  the method divides by zero" in text
    assert "out of memory  digits/classes  hungry" in text
    assert "3 runs: 3 made, 0 in the ledger already, 2 failed." in text

    run_bench(config(tmp_path, "broken,hungry,good", seeds=1), engine=engine)
    assert started(tmp_path) == 3, "failed runs are not made again unasked"
    ledger = run_bench(config(tmp_path, "broken,hungry,good", seeds=1, retry_failed=True), engine=engine)
    assert started(tmp_path) == 5
    assert by_label(ledger)["broken"][0].attempts == 2


def test_a_search_without_a_score_fails_its_finals_with_the_reason(tmp_path: Path) -> None:
    ledger = run_bench(config(tmp_path, "broken", tier="full"), engine=StandIn(tmp_path / "log"))
    assert started(tmp_path) == 3, "finals are not trained"
    error = by_label(ledger)["broken"][0].error
    assert error is not None
    assert error.kind == "SearchFailed"
    assert "the method divides by zero" in error.message


@pytest.mark.parametrize(
    ("change", "kind", "complaint"),
    [
        ({"suite": "digit"}, UnknownSuite, "Did you mean 'digits'"),
        ({"tier": "quik"}, UnknownTask, "Did you mean 'quick'"),
        ({"tasks": ("klasses",)}, UnknownTask, "Did you mean 'classes'"),
        ({"methods": ("god",)}, NoSuchMethod, "Did you mean 'good'"),
        ({"optimisation": {"epoch": 3}}, UnknownSetting, "Did you mean 'epochs'"),
        ({"optimisation": {"lr": 3}}, UnknownSetting, "its grid"),
        ({"executor": "proceses"}, UnknownExecutor, "Did you mean 'processes'"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_said_before_anything_runs(
    tmp_path: Path, change: dict[str, object], kind: type[VpeftError], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        run_bench(config(tmp_path, "good").model_copy(update=change), engine=StandIn(tmp_path / "log"))
    assert not (tmp_path / "ledger").exists()


def test_departures_from_the_protocol_are_other_runs_and_say_so(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    run_bench(config(tmp_path, "good", seeds=1), engine=engine)
    ledger = run_bench(config(tmp_path, "good", seeds=1, optimisation={"epochs": 3, "batch": 32}), engine=engine)
    departures = sorted(str(record.departures) for record in ledger)
    # The batch is the protocol's own, so it is no departure.
    assert departures == ["{'epochs': 3}", "{}"]


def test_an_interrupt_leaves_the_run_planned(tmp_path: Path) -> None:
    class Interrupted(StandIn):
        def train(self, assignment: Assignment, train: Split, val: Split | None, after_epoch: object) -> object:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(config(tmp_path, "good", seeds=2), engine=Interrupted(tmp_path / "log"))  # type: ignore[arg-type]
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.states() == {State.planned: 2}
    assert not any(ledger.claimed(record.key) for record in ledger)
    assert run_bench(config(tmp_path, "good", seeds=2), engine=StandIn(tmp_path / "log")).states() == {State.done: 2}


class FullDisk(StandIn):
    """The disk has no room for the checkpoint of the second run."""

    def train(self, *given: Any) -> Any:
        if any(event.startswith("end") for event in log(self.log.parent)):
            raise disk_full(self.log.parent, "checkpoint.safetensors could not be written")
        return super().train(*given)


def test_a_full_disk_stops_the_benchmark_and_is_no_failure_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=f"The disk of {tmp_path} is full"):
        run_bench(config(tmp_path, "good"), engine=FullDisk(tmp_path / "log"))
    assert Ledger(tmp_path / "ledger").states().keys() == {State.done, State.running, State.planned}
    ledger = run_bench(config(tmp_path, "good"), engine=StandIn(tmp_path / "log"))
    assert ledger.states() == {State.done: 3} and started(tmp_path) == 3


def test_checkpoints_of_a_run_that_is_done_are_removed(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    ledger = run_bench(config(tmp_path, "good", seeds=1), engine=engine)
    (record,) = ledger
    left = ledger.work(record.key)
    (left / "checkpoint").touch()
    run_bench(config(tmp_path, "good", seeds=1), engine=engine)
    assert not left.exists()
    assert started(tmp_path) == 1


def test_an_executor_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a further executor is: one class, registered under a name."""
    monkeypatch.setattr("vpeft.bench.executors.executor._EXECUTORS", dict(executors()))
    made: list[ExecutorSettings] = []

    @register_executor("backwards")
    class Backwards(SerialExecutor):
        def __init__(self, settings: ExecutorSettings) -> None:
            made.append(settings)
            super().__init__(settings)

    assert set(executors()) == {"backwards", "processes", "ray", "serial"}
    ledger = run_bench(config(tmp_path, "good", seeds=1, executor="backwards"), engine=StandIn(tmp_path / "log"))
    assert ledger.states() == {State.done: 1}
    assert [settings.workers for settings in made] == [None]
    with pytest.raises(ValueError, match="taken"):
        register_executor("serial")(Backwards)


def test_the_serial_executor_refuses_several_workers(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableExecutor, match="Use the executor processes"):
        run_bench(config(tmp_path, "good", executor="serial", workers=2), engine=StandIn(tmp_path / "log"))


def test_an_address_is_for_the_cluster(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableExecutor, match="this machine alone"):
        run_bench(config(tmp_path, "good", executor="serial", address="auto"), engine=StandIn(tmp_path / "log"))


def test_only_executors_are_handed_a_test_split() -> None:
    source = Path(__file__).parents[3] / "src" / "vpeft"
    callers = {path.relative_to(source) for path in source.rglob("*.py") if ".handed_over(" in path.read_text()}
    assert callers == {Path("bench/executors/ray_cluster.py")}


@pytest.mark.slow
def test_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    engine = StandIn(tmp_path / "log")
    alone = run_bench(config(tmp_path, "good,poor", tier="full", seeds=2), engine=engine)
    other = tmp_path / "other"
    other.mkdir()
    together = run_bench(
        config(other, "good,poor", tier="full", seeds=2, workers=2), engine=StandIn(other / "log", seconds=0.02)
    )
    assert {record.key: (record.scores, record.chosen) for record in alone} == {
        record.key: (record.scores, record.chosen) for record in together
    }
    assert set(log(other).values()) == {1}
    processes = {line.split()[2] for line in (other / "log").read_text().splitlines()}
    assert str(os.getpid()) not in processes
    assert len(processes) == 2


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_run_only(tmp_path: Path) -> None:
    ledger = run_bench(config(tmp_path, "suicidal,good", workers=2, seeds=2), engine=StandIn(tmp_path / "log"))
    runs = by_label(ledger)
    assert [record.state for record in runs["good"]] == [State.done, State.done]
    for record in runs["suicidal"]:
        assert record.state is State.failed
        assert record.error is not None
        assert "SIGKILL" in record.error.message


SCRIPT = """
import sys
from pathlib import Path
from tests.unit.bench.stand_in import StandIn
from vpeft.bench import BenchConfig, run_bench

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_bench(
        BenchConfig(suite="digits", tier="full", methods=("good", "poor"), out=folder / "ledger", show=False,
                    workers=int(sys.argv[2])),
        engine=StandIn(folder / "log", seconds=0.15),
    )
"""


def launch(tmp_path: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    script = tmp_path / "bench_script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script), str(tmp_path), str(workers)], env=environment)


def wait_for_records(ledger: Ledger, done: int) -> None:
    deadline = time.monotonic() + 120
    while ledger.states()[State.done] < done:
        assert time.monotonic() < deadline, "the benchmark did not get going"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_and_resumed_no_run_is_lost_or_done_twice(tmp_path: Path, workers: int) -> None:
    process = launch(tmp_path, workers)
    ledger = Ledger(tmp_path / "ledger")
    wait_for_records(ledger, done=3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {record.key: record for record in ledger if record.state is State.done}
    assert 3 <= len(before) < 12
    assert launch(tmp_path, workers).wait(timeout=240) == 0

    # Two methods: three points of the grid and three seeds each.
    assert ledger.states() == {State.done: 12}
    after = {record.key: record for record in ledger}
    assert {key: after[key] for key in before} == before, "a recorded run was made a second time"
    events = log(tmp_path)
    assert {events[f"start {key}"] for key in before} == {1}
    # Only what was under way at the kill starts anew; worker processes that outlive it even finish what they are at.
    assert 12 <= started(tmp_path) <= 12 + workers
    assert not list((tmp_path / "ledger" / ".work").iterdir())


@pytest.mark.slow
def test_two_benchmarks_at_once_share_the_work(tmp_path: Path) -> None:
    processes = [launch(tmp_path), launch(tmp_path)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert Ledger(tmp_path / "ledger").states() == {State.done: 12}
    assert set(log(tmp_path).values()) == {1}
    made_by = {line.split()[2] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(made_by) == 2


def test_memory_errors_of_all_kinds_are_known() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    wrapped = VpeftError("The step needs 3 GiB; lower the batch.")
    wrapped.__cause__ = RuntimeError("CUDA out of memory.")
    assert out_of_memory(wrapped)
    assert not out_of_memory(RuntimeError("shapes differ"))


def test_suites_are_found_and_their_tiers_make_sense() -> None:
    from vpeft.bench.protocol import protocol

    assert "digits" in suites()
    for suite in suites().values():
        assert suite.default_tier in suite.tiers
        for tier in suite.tiers.values():
            protocol(tier.protocol)
            assert set(tier.tasks) <= set(suite.tasks)


def test_a_tier_has_the_seeds_that_its_protocol_demands() -> None:
    from vpeft.bench.protocol import protocol

    for suite in suites().values():
        for tier in suite.tiers.values():
            assert tier.seeds == protocol(tier.protocol).seeds
    assert len(suites()["pocket"].tiers["smoke"].tasks) == 2


def test_digits_are_split_once_and_for_all() -> None:
    task = open_task("digits", "classes")
    assert [len(split.labels) for split in (task.train, task.val, task.train_and_val())] == [800, 200, 1000]
    assert task.train.pixels.shape == (800, 8, 8, 3)
    assert task.train.pixels.max() == 255
    # Stratified: the classes differ by one image at most.
    counts = Counter(task.train.labels.tolist())
    assert max(counts.values()) - min(counts.values()) <= 1
    assert task.digest[:12] == "8a781d3bfcfe"
