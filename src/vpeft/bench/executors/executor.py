"""What an executor is, and the list of those that are registered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

from vpeft.bench.engine import Engine
from vpeft.bench.execute import JobOutcome
from vpeft.bench.ledger import Ledger
from vpeft.bench.plan import Job
from vpeft.errors import VpeftError


class UnknownExecutor(VpeftError):
    """No executor has this name."""


class UnsuitableExecutor(VpeftError):
    """The executor cannot do what it was asked for."""


@dataclass(frozen=True)
class ClusterSettings:
    """Which cluster, and what one run needs of it.

    Attributes:
        address: HOST:PORT, "auto" for the cluster of this machine; None for this machine alone.
        run_cpus: processors of a run. A run computes with one thread; more keep others away from its memory.
        run_gpus: GPUs of a run; 0.25 lets four share one. None: one where the benchmark computes on GPUs, else none.
    """

    address: str | None = None
    run_cpus: float = 1.0
    run_gpus: float | None = None


@dataclass(frozen=True)
class ExecutorSettings:
    """What every executor is made with: how many runs at once (None: its own choice), where records go, who trains."""

    workers: int | None
    ledger: Ledger
    engine: Engine
    retry_failed: bool
    cluster: ClusterSettings = ClusterSettings()


class Executor(Protocol):
    """Carries out jobs, in a `with` statement: `start` a job while it is `idle`, then collect what is `finished`."""

    @property
    def idle(self) -> bool:
        """Whether it takes another job now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        ...

    def start(self, job: Job) -> None:
        """Take a job; only while `idle`."""
        ...

    def finished(self, seconds: float) -> list[JobOutcome]:
        """The jobs that ended, after waiting `seconds` at most for the first; only while `busy`."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


ExecutorClass = Callable[[ExecutorSettings], Executor]
ClassT = TypeVar("ClassT", bound=ExecutorClass)
_EXECUTORS: dict[str, ExecutorClass] = {}


def register_executor(name: str) -> Callable[[ClassT], ClassT]:
    """Enter the decorated class under `name`. It is made with one argument, the `ExecutorSettings`."""

    def add(kind: ClassT) -> ClassT:
        if name in _EXECUTORS and _EXECUTORS[name] is not kind:
            raise ValueError(f"The executor name {name!r} is taken.")
        _EXECUTORS[name] = kind
        return kind

    return add


def registered() -> dict[str, ExecutorClass]:
    """What was registered so far; `vpeft.bench.executors.executors` imports the files first."""
    return dict(sorted(_EXECUTORS.items()))
