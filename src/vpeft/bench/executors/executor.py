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
class ExecutorSettings:
    """What every executor is made with: how many runs at once, where records go, who trains."""

    workers: int
    ledger: Ledger
    engine: Engine
    retry_failed: bool


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
