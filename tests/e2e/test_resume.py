"""A run that is killed without warning ends bit by bit like one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.random_kills import count
from tests.e2e.training_process import SETTINGS, train
from vpeft.training.checkpoint import read_checkpoint
from vpeft.training.loop import CHECKPOINT
from vpeft.training.result import EpochRecord

ROOT = Path(__file__).parents[2]
TIMES = {"seconds", "images_per_second"}


def started(out: Path, start: int) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.training_process", str(out), str(start)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def killed_after(out: Path, start: int, step: int, number: signal.Signals) -> int:
    """Let a process train until its checkpoint says `step` or more, kill it, and return its exit code."""
    process = started(out, start)
    deadline = time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None, "the process ended before it could be killed"
            assert time.monotonic() < deadline, "the process made no progress"
            # Read while it is being written, again and again: the file must be whole whenever it is looked at.
            path = out / CHECKPOINT
            if path.exists() and read_checkpoint(path).facts["state"]["step"] >= step:
                break
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def plain(history: list[EpochRecord]) -> list[dict[str, object]]:
    return [record.model_dump(exclude=TIMES) for record in history]


@pytest.mark.slow
def test_killed_in_the_middle_and_taken_up_again_is_bit_equal(tmp_path: Path) -> None:
    expected, unkilled = train(None, start=0)
    assert killed_after(tmp_path, 0, 8, signal.SIGKILL) == -signal.SIGKILL
    assert killed_after(tmp_path, 1, 17, signal.SIGKILL) == -signal.SIGKILL
    reached = read_checkpoint(tmp_path / CHECKPOINT).facts["state"]
    assert 17 <= reached["step"] < 30
    final, result = train(tmp_path, start=2)
    assert result.state == "done"
    assert result.resumed_at == reached["step"]
    assert final.keys() == expected.keys()
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    assert plain(result.history) == plain(unkilled.history)
    assert result.val == unkilled.val
    assert (result.best_epoch, result.kept_epoch) == (unkilled.best_epoch, unkilled.kept_epoch)
    assert result.steps == SETTINGS.epochs * 5


@pytest.mark.slow
def test_asked_to_stop_it_saves_the_step_in_progress_and_exits_in_order(tmp_path: Path) -> None:
    expected, _ = train(None, start=0)
    assert killed_after(tmp_path, 0, 6, signal.SIGTERM) == 0
    text = (tmp_path / "result.json").read_text()
    assert '"state": "stopped"' in text
    final, result = train(tmp_path, start=3)
    assert result.resumed_at is not None
    assert result.resumed_at >= 6
    assert all(torch.equal(final[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_equal() -> None:
    """A few; `benchmarks/kills.py --kills 100` makes many."""
    found = count(kills=12, seed=1)
    assert found.good, found
    assert found.kills == 12 and found.trainings >= 2 and len(set(found.steps)) > 1, found
