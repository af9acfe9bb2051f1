"""What a person sees of a benchmark under way: a bar with a terminal, plain lines without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vpeft.bench.plan import Job
from vpeft.bench.record import RunRecord, State
from vpeft.guarded import printable


class Watch:
    """Shows the jobs of one benchmark as they end. Use it in a `with` statement."""

    def __init__(self, jobs: Sequence[Job], console: Console, show: bool) -> None:
        self._console, self._show = console, show
        self._total = len(jobs)
        self._seen: set[str] = set()
        self._skipped = 0
        self._made: Counter[State] = Counter()
        self._failures: list[RunRecord] = []
        # The bar only where it can be redrawn; a log file gets a line per run instead.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
            transient=True,
        )
        self._bar = self._progress.add_task("runs", total=self._total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._show:
            self._summary(interrupted=kind is not None and not issubclass(kind, Exception))

    def started(self, job: Job) -> None:
        """A job was handed out."""
        self._progress.update(self._bar, description=_words(job.identity.purpose, job.identity.task, job.label))

    def skipped(self, record: RunRecord) -> None:
        """A run was found settled, and was not made again."""
        self._skipped += 1
        self._count(record.key)
        if record.state is not State.done:
            self._failures.append(record)

    def ended(self, record: RunRecord) -> None:
        """A run was made, well or badly."""
        self._made[record.state] += 1
        self._count(record.key)
        if record.state is not State.done:
            self._failures.append(record)
        if self._show:
            self._console.print(self._line(record), highlight=False, soft_wrap=True)

    def _count(self, key: str) -> None:
        self._seen.add(key)
        self._progress.update(self._bar, completed=len(self._seen))

    def _line(self, record: RunRecord) -> str:
        head = f"{len(self._seen):>4}/{self._total}  "
        what = _words(record.identity.purpose, record.identity.task, record.label)
        what += f"  seed {record.identity.seed}" if record.identity.purpose == "final" else _point(record)
        if record.scores is None:
            reason = "".join(record.error.message.splitlines()[:1]) if record.error else ""
            return f"{head}[red]{record.state.value.replace('_', ' ')}[/red]  {what}  {escape(printable(reason, 1000))}"
        seconds = record.costs.wall_seconds if record.costs and record.costs.wall_seconds is not None else 0.0
        return f"{head}{what}  {record.scores.split} [bold]{record.scores.sentence()}[/bold]  {seconds:.1f} s"

    def _summary(self, interrupted: bool) -> None:
        left = self._total - len(self._seen)
        made = sum(self._made.values())
        parts = [f"{made} made", f"{self._skipped} in the ledger already"]
        parts += [f"{len(self._failures)} failed"] if self._failures else []
        parts += [f"{left} left"] if left else []
        self._console.print(f"{self._total} runs: {', '.join(parts)}.", highlight=False)
        if interrupted:
            self._console.print("Stopped. The same command goes on from here.", highlight=False)
        if self._failures:
            self._console.print(
                "Failed runs are kept with their error; retry_failed makes them again.", highlight=False
            )


def _words(purpose: str, task: str, label: str) -> str:
    return f"{'search ' if purpose == 'search' else ''}{escape(task)}  {escape(label)}"


def _point(record: RunRecord) -> str:
    if record.chosen is None:
        return ""
    return f"  lr {record.chosen.lr:g} wd {record.chosen.weight_decay:g}"
