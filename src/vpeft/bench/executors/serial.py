"""This process, one job at a time."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from vpeft.bench.execute import JobOutcome, perform
from vpeft.bench.executors.executor import ExecutorSettings, UnsuitableExecutor, register_executor
from vpeft.bench.executors.threads import THREADS, threads
from vpeft.bench.plan import Job


@register_executor("serial")
class SerialExecutor:
    """Carries out a job here when its outcome is asked for. Raises UnsuitableExecutor for several workers."""

    def __init__(self, settings: ExecutorSettings) -> None:
        if settings.workers not in (None, 1):
            raise UnsuitableExecutor(
                f"The executor serial has one worker, but {settings.workers} were asked for. "
                "Use the executor processes, or auto."
            )
        self._settings = settings
        self._job: Job | None = None

    @property
    def idle(self) -> bool:
        return self._job is None

    @property
    def busy(self) -> bool:
        return self._job is not None

    def start(self, job: Job) -> None:
        self._job = job

    def finished(self, seconds: float) -> list[JobOutcome]:
        job, self._job = self._job, None
        assert job is not None, "an executor is asked for outcomes while it is busy"
        asked = self._settings
        with threads(THREADS):
            return [perform(job, asked.ledger, asked.engine, threads=THREADS, retry_failed=asked.retry_failed)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
