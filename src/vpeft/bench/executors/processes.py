"""Several worker processes on this machine, with one thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from vpeft.bench.engine import Engine
from vpeft.bench.execute import Ending, JobOutcome, failed, perform
from vpeft.bench.executors.executor import ExecutorSettings, register_executor
from vpeft.bench.executors.threads import THREADS, threads
from vpeft.bench.ledger import Ledger
from vpeft.bench.plan import Job
from vpeft.errors import VpeftError


class WorkerDied(VpeftError):
    """A worker process ended in the middle of a run."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: Job | None = None


@register_executor("processes")
class ProcessExecutor:
    """Worker processes. One that dies is replaced, and its run is recorded as failed with the reason."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self._ledger, self._engine, self._retry = settings.ledger, settings.engine, settings.retry_failed
        # Spawned, not forked: a forked child inherits torch's threads and locks in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._spawn() for _ in range(settings.workers or 1)]

    def _spawn(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(theirs, self._ledger.path, self._engine, self._retry), name="vpeft bench", daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    @property
    def idle(self) -> bool:
        return any(worker.job is None for worker in self._workers)

    @property
    def busy(self) -> bool:
        return any(worker.job is not None for worker in self._workers)

    def start(self, job: Job) -> None:
        worker = next(worker for worker in self._workers if worker.job is None)
        worker.job = job
        # A pipe that broke belongs to a worker that died idle; `finished` sees it and deals with the job.
        with contextlib.suppress(OSError):
            worker.pipe.send(job)

    def finished(self, seconds: float) -> list[JobOutcome]:
        """What came to an end within `seconds`, empty if nothing did."""
        at_work = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        outcomes: list[JobOutcome] = []
        for pipe in wait(list(at_work), seconds):
            assert isinstance(pipe, Connection)
            worker = at_work[pipe]
            try:
                outcomes.append(pipe.recv())
                worker.job = None
            except (EOFError, OSError):
                outcomes.append(self._reap(worker))
        return outcomes

    def _reap(self, worker: _Worker) -> JobOutcome:
        """Record the run of a dead worker as failed, and start another worker."""
        worker.process.join()
        job, code = worker.job, worker.process.exitcode
        assert job is not None
        self._workers[self._workers.index(worker)] = self._spawn()
        lease = self._ledger.claim(job.key)
        if lease is None:
            return JobOutcome(key=job.key, ending=Ending.elsewhere)
        with lease:
            record = self._ledger.get(job.key) or job.record()
            if record.state.finished:
                return JobOutcome(key=job.key, ending=Ending.made, record=record)
            record = failed(record, WorkerDied(_cause_of_death(code)))
            self._ledger.write(record, lease)
        return JobOutcome(key=job.key, ending=Ending.made, record=record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            # Idle workers leave when their pipe closes. Busy ones are here only after an interrupt: they got it too.
            worker.process.join(timeout=5.0)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()


def work(pipe: Connection, ledger: Path, engine: Engine, retry_failed: bool) -> None:
    """The life of a worker: take a job, do it, hand back the outcome, until the pipe closes."""
    book = Ledger(ledger)
    with threads(THREADS):
        while True:
            try:
                job = pipe.recv()
            except (EOFError, OSError, KeyboardInterrupt):
                return
            try:
                outcome = perform(job, book, engine, threads=THREADS, retry_failed=retry_failed)
            except KeyboardInterrupt:
                return
            try:
                pipe.send(outcome)
            except OSError:
                # The benchmark was killed; the run is in the ledger, and there is nobody to take more jobs from.
                return


def _cause_of_death(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (often the system, which had no memory left: use fewer workers)" if name == "SIGKILL" else ""
        return f"The worker process was ended by {name}{hint}."
    return f"The worker process ended with exit code {code} in the middle of the run."
