"""What is shown with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.unit.training.material import Patches, tuned_vit
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.progress import Bar, Lines, Silent, clock, display
from vpeft.training.result import EpochRecord

RECORD = EpochRecord(
    epoch=2,
    step=8,
    lr=5e-4,
    train_loss=0.75,
    train={"top1": 0.5},
    gradient_norm=1.0,
    val={"top1": 0.625, "loss": 0.25, "more": 1.0},
    seconds=65.2,
    images_per_second=123.4,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_without_a_terminal() -> None:
    stream = io.StringIO()
    shown = display(True, stream)
    assert isinstance(shown, Lines)
    shown.start(10, 4, 0)
    shown.step(1, 1.0, {"top1": 0.1}, 10.0, 5.0)  # within half a minute: nothing
    shown.epoch(RECORD)
    shown.close()
    assert stream.getvalue() == (
        "epoch  2/10  loss 0.7500  top1 0.5  validation  top1 0.625  loss 0.25  lr 5.0e-04  123 images/s  1:05\n"
    )


def test_a_long_epoch_is_not_silent() -> None:
    stream = io.StringIO()
    shown = Lines(stream)
    shown.start(2, 100, 0)
    shown._last -= 31  # half a minute has gone by
    shown.step(50, 0.5, {"top1": 0.25}, 12.0, 75.0)
    shown.step(51, 0.5, {"top1": 0.25}, 12.0, 74.0)
    assert stream.getvalue() == "  step 50/200  loss 0.5000  top1 0.25  12 images/s  1:15 left\n"


def test_a_live_bar_in_a_terminal() -> None:
    console = Console(file=Terminal(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    shown = Bar(console)
    shown.start(2, 10, 0)
    shown.step(15, 0.5, {"top1": 0.25}, 12.0, 75.0)
    shown._progress.refresh()
    shown.epoch(RECORD)
    shown.close()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("epoch 2/2", "loss 0.5000", "top1 0.25", "12 images/s", "1:15 left", "validation  top1 0.625"):
        assert part in text


def test_training_shows_loss_accuracy_speed_and_time_left_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    monkeypatch.setattr("vpeft.training.fit.display", lambda wanted: Bar(console))
    fit(tuned_vit(), Patches(16), Patches(6), optimisation=Optimisation(epochs=2, batch=8))
    for part in ("epoch 1/2", "images/s", "validation", "left"):
        assert part in stream.getvalue()


def test_nothing_when_nothing_is_wanted() -> None:
    assert isinstance(display(False), Silent)


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 7, 185, 7385)] == ["0:00", "0:07", "3:05", "2:03:05"]
