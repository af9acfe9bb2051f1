"""Progress of training: a live bar in a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.text import Text

from vpeft.safe_text import SafeConsole, visible
from vpeft.training.result import EpochRecord, shown

_LINE_EVERY = 30.0  # seconds between plain lines within a long epoch


class Display(Protocol):
    """The interface of a progress display."""

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        """Begin training at optimiser step `step`."""

    def step(
        self, step: int, loss: float, monitored: Mapping[str, float], images_per_second: float, seconds_left: float
    ) -> None:
        """Show a step; `loss` and `monitored` are means over the epoch so far."""

    def epoch(self, record: EpochRecord) -> None:
        """Show a finished epoch."""

    def say(self, text: str) -> None:
        """Print one line for the user."""

    def close(self) -> None:
        """End the display."""


def display(shown: bool, stream: TextIO | None = None) -> Display:
    """Return a display on `stream` (standard error by default): silent, a live bar in a terminal, or plain lines."""
    if not shown:
        return Silent()
    console = SafeConsole(file=stream or sys.stderr)
    return Bar(console) if console.is_terminal and not console.is_dumb_terminal else Lines(stream or sys.stderr)


class Silent:
    """A display that prints nothing."""

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None: ...

    def step(
        self, step: int, loss: float, monitored: Mapping[str, float], images_per_second: float, seconds_left: float
    ) -> None: ...

    def epoch(self, record: EpochRecord) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class OneOf(Silent):
    """The display of one of several concurrent runs: one line for each epoch, with the run's name."""

    def __init__(self, name: str, shown: Display) -> None:
        self._name, self._shown = name, shown
        self._epochs = 0

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        self._epochs = epochs

    def epoch(self, record: EpochRecord) -> None:
        self.say(epoch_line(record, self._epochs))

    def say(self, text: str) -> None:
        self._shown.say(f"{self._name}  {text}")


class Lines:
    """One line per epoch, and one every half minute within an epoch; no control characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._epochs = self._per_epoch = 0
        self._last = time.monotonic()

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        self._epochs, self._per_epoch, self._last = epochs, steps_per_epoch, time.monotonic()

    def step(
        self, step: int, loss: float, monitored: Mapping[str, float], images_per_second: float, seconds_left: float
    ) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY:
            return
        self._last = now
        self.say(
            f"  step {step}/{self._epochs * self._per_epoch}  loss {loss:.4f}{_named(monitored)}"
            f"  {images_per_second:.0f} images/s  {clock(seconds_left)} left"
        )

    def epoch(self, record: EpochRecord) -> None:
        self._last = time.monotonic()
        self.say(epoch_line(record, self._epochs))

    def say(self, text: str) -> None:
        with suppress(OSError):  # a terminal that was closed does not end the training
            print(visible(text), file=self._stream, flush=True)

    def close(self) -> None: ...


class Bar:
    """A live bar, with one line above it for each finished epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}{task.fields[monitored]}  {task.fields[rate]} images/s"),
            _Left(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._epochs = self._per_epoch = 0

    def start(self, epochs: int, steps_per_epoch: int, step: int) -> None:
        self._epochs, self._per_epoch = epochs, steps_per_epoch
        self._progress.start()
        self._task = self._progress.add_task(
            "training",
            total=epochs * steps_per_epoch,
            completed=step,
            loss="-",
            monitored="",
            rate="-",
            left="-:--",
        )

    def step(
        self, step: int, loss: float, monitored: Mapping[str, float], images_per_second: float, seconds_left: float
    ) -> None:
        if self._task is None:
            return
        self._progress.update(
            self._task,
            completed=step,
            description=f"epoch {min(self._epochs, (step - 1) // self._per_epoch + 1)}/{self._epochs}",
            loss=f"{loss:.4f}",
            monitored=_named(monitored),
            rate=f"{images_per_second:.0f}",
            left=clock(seconds_left),
        )

    def epoch(self, record: EpochRecord) -> None:
        self.say(epoch_line(record, self._epochs))

    def say(self, text: str) -> None:
        with suppress(OSError):  # as above
            self._console.print(Text(visible(text)))

    def close(self) -> None:
        with suppress(OSError):  # as above
            self._progress.stop()


class _Left(ProgressColumn):
    """The remaining time, as the training loop estimates it."""

    def render(self, task: object) -> Text:
        fields: dict[str, str] = getattr(task, "fields", {})
        return Text(f"{fields['left']} left")


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """Return one epoch as one line."""
    line = f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}"
    line += f"  loss {record.train_loss:.4f}{_named(record.train)}"
    if record.val is not None:
        line += f"  validation{_named(dict(list(record.val.items())[:2]))}"
    return line + f"  lr {record.lr:.1e}  {record.images_per_second:.0f} images/s  {clock(record.seconds)}"


def _named(values: Mapping[str, float]) -> str:
    """Return values with their names, to continue a line."""
    return "".join(f"  {name} {shown(value)}" for name, value in values.items())


def clock(seconds: float) -> str:
    """Format seconds as 0:07, 3:05 or 2:03:05."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
