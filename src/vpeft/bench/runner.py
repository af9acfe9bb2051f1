"""Running a benchmark: plan it, skip what the ledger has, do the rest, in this process, in several, or on a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console

from vpeft.arguments import one_of, require
from vpeft.bench.config import BenchConfig
from vpeft.bench.engine import Engine
from vpeft.bench.execute import Ending, JobOutcome, settled
from vpeft.bench.executors import ClusterSettings, Executor, ExecutorSettings, executor_class
from vpeft.bench.ledger import Ledger
from vpeft.bench.plan import Job, make_plan
from vpeft.bench.progress import Watch
from vpeft.bench.record import RunRecord
from vpeft.safe_text import SafeConsole

# Seconds between two looks at runs that another process is making.
POLL = 1.0


def run_bench(config: BenchConfig, *, engine: Engine | None = None, console: Console | None = None) -> Ledger:
    """Make every run of the benchmark that the ledger lacks, and return the ledger.

    A run that fails is recorded with its error and the others go on. Killed at any moment and called again, here or on
    another machine that has the ledger, it goes on from what is recorded; several calls at once share the work. Runs
    that another process is making are waited for. Raises a VpeftError for what does not exist (suite, method, field,
    backbone, executor) before anything is run.

    `engine` trains; it is vpeft's own unless another is given. Its device and precision may be among the settings that
    `config.optimisation` changes: they are part of a run's key, but no departure from a protocol.
    """
    require("run_bench(config)", config=(config, one_of(BenchConfig, says="a BenchConfig")))
    if engine is None:
        engine, config = _own_engine(config)
    kind = executor_class(config.executor, config.workers, config.address)
    jobs = make_plan(config, engine)
    ledger = Ledger(config.out)
    with Watch(jobs, console or SafeConsole(), config.show) as watch:
        todo = _take_stock(jobs, ledger, config.retry_failed, watch)
        if todo:
            workers = None if config.workers is None else min(config.workers, len(todo))
            cluster = ClusterSettings(config.address, config.run_cpus, config.run_gpus)
            settings = ExecutorSettings(workers, ledger, engine, config.retry_failed, cluster)
            with kind(settings) as executor:
                _carry_out(jobs, todo, executor, ledger, config.retry_failed, watch)
    return ledger


def _own_engine(config: BenchConfig) -> tuple[Engine, BenchConfig]:
    """vpeft's engine with the device and precision that were asked for, and the settings that are left."""
    # Late: reading a ledger and running a benchmark with another engine load neither torch nor timm.
    from vpeft.bench.trainer import VpeftEngine
    from vpeft.training.optimisation import Optimisation

    settings = dict(config.optimisation)
    machine = {name: settings.pop(name) for name in ("device", "precision") if name in settings}
    checked = Optimisation(**machine)
    engine = VpeftEngine(accelerated=checked.device != "cpu", precision=checked.precision)
    return engine, config.model_copy(update={"optimisation": settings})


def _take_stock(jobs: Sequence[Job], ledger: Ledger, retry_failed: bool, watch: Watch) -> list[Job]:
    """Plan what is new, pass over what is settled; the jobs that are left."""
    todo = []
    for job in jobs:
        record = ledger.get(job.key)
        if record is None:
            ledger.plan(job.record())
        if record is not None and settled(record, retry_failed):
            # A process that was killed right after it wrote the record has left its checkpoints.
            ledger.clear_work(job.key)
            watch.skipped(record)
        else:
            todo.append(job)
    return todo


def _carry_out(
    jobs: Sequence[Job], todo: Sequence[Job], executor: Executor, ledger: Ledger, retry_failed: bool, watch: Watch
) -> None:
    """Hand out jobs whose search is over, until all are settled."""
    waiting = list(todo)
    unsettled = {job.key for job in todo}
    by_key = {job.key: job for job in jobs}
    elsewhere: list[Job] = []

    def end(outcome: JobOutcome) -> None:
        if outcome.ending is Ending.elsewhere:
            elsewhere.append(by_key[outcome.key])
            return
        unsettled.discard(outcome.key)
        assert outcome.record is not None
        watch.ended(outcome.record) if outcome.ending is Ending.made else watch.skipped(outcome.record)

    while waiting or elsewhere or executor.busy:
        for job in [job for job in waiting if unsettled.isdisjoint(key for _, key in job.needs)]:
            if not executor.idle:
                break
            waiting.remove(job)
            watch.started(job)
            executor.start(job)
        if executor.busy:
            for outcome in executor.finished(POLL):
                end(outcome)
        elif elsewhere:
            time.sleep(POLL)
        for job in list(elsewhere):
            record = _settled_elsewhere(job, ledger, retry_failed)
            if record is not None:
                elsewhere.remove(job)
                end(JobOutcome(key=job.key, ending=Ending.settled, record=record))
            elif not ledger.claimed(job.key):
                # Its process died: the run is ours again.
                elsewhere.remove(job)
                waiting.append(job)


def _settled_elsewhere(job: Job, ledger: Ledger, retry_failed: bool) -> RunRecord | None:
    """The record of a job that another process has finished, or None while it is at it."""
    if ledger.claimed(job.key):
        return None
    record = ledger.get(job.key)
    # A run that failed elsewhere just now was made just now: it is not made a second time here.
    return record if record is not None and (settled(record, retry_failed) or record.state.finished) else None
