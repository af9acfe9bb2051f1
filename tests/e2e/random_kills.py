"""Trainings that are killed at random moments, again and again, and must end bit by bit like one that is not.

`python -m tests.e2e.random_kills 100` prints JSON. Every training is a forked process of its own, so that a kill costs
a second and not the time of all imports; this process itself trains nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.e2e.training_process import train
from vpeft.errors import VpeftError
from vpeft.injection.tune import tune  # noqa: F401 - imported late otherwise, by every child anew
from vpeft.training.checkpoint import read_checkpoint
from vpeft.training.loop import CHECKPOINT

DELAY = 0.004  # seconds that each image takes, so that kills land between any two lines of the loop
MOST = 6  # kills of one training
TIMES = {"seconds", "images_per_second"}
FINAL, SAID = "final.safetensors", "final.json"


@dataclass
class Counts:
    """How many kills, at which steps, and what became of the trainings."""

    trainings: int = 0
    kills: int = 0
    before_the_first_checkpoint: int = 0
    damaged_checkpoints: int = 0
    lost: int = 0
    unequal: int = 0
    leftovers: int = 0
    steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing happened that must not."""
        return not (self.damaged_checkpoints or self.lost or self.unequal or self.leftovers)


def finish(out: Path | None, results: Path, start: int, delay: float) -> None:
    """Train to the end, and write what came out into the folder `results`."""
    state, result = train(out, start, delay)
    save_file(state, results / FINAL)
    history = [record.model_dump(exclude=TIMES, mode="json") for record in result.history]
    said = {"history": history, "steps": result.steps, "best": result.best_epoch, "kept": result.kept_epoch}
    (results / SAID).write_text(json.dumps(said))


def begun(out: Path | None, results: Path, start: int, delay: float) -> multiprocessing.process.BaseProcess:
    """The same in a process of its own."""
    results.mkdir(exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=finish, args=(out, results, start, delay))
    process.start()
    return process


def count(kills: int, seed: int = 0) -> Counts:
    """Kill trainings so many times, each 1 to 6 times, let each end, and compare it with one that was left alone."""
    draw, counts, began = random.Random(seed), Counts(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = time.monotonic()
        alone = begun(None, folder / "alone", 0, DELAY)
        alone.join()
        if alone.exitcode != 0:
            raise RuntimeError("the training that nobody kills failed")
        whole = time.monotonic() - whole
        while counts.kills < kills and counts.lost < 3:
            out, results = folder / f"run{counts.trainings}", folder / f"results{counts.trainings}"
            counts.trainings += 1
            for _ in range(min(draw.randint(1, MOST), kills - counts.kills)):
                process = begun(out, results, _start(out, counts.kills), DELAY)
                process.join(draw.uniform(0.0, 0.8 * whole))
                process.kill()
                process.join()
                if process.exitcode != -signal.SIGKILL:
                    break  # it was done before
                counts.kills += 1
                _look_at(out / CHECKPOINT, counts)
            last = begun(out, results, _start(out, counts.kills), 0.0)
            last.join()
            counts.lost += last.exitcode != 0
            counts.unequal += last.exitcode == 0 and not _equal(folder / "alone", results)
            counts.leftovers += any(path.name.endswith(".partial") for path in out.rglob("*"))
    counts.seconds = round(time.monotonic() - began, 1)
    return counts


def _start(out: Path, attempt: int) -> int:
    """The seed of the adapter's first weights: another for each attempt, which those of a checkpoint must replace."""
    return attempt if (out / CHECKPOINT).exists() else 0


def _look_at(checkpoint: Path, counts: Counts) -> None:
    if not checkpoint.exists():
        counts.before_the_first_checkpoint += 1
        return
    try:
        counts.steps.append(int(read_checkpoint(checkpoint).facts["state"]["step"]))
    except VpeftError:
        counts.damaged_checkpoints += 1


def _equal(one: Path, other: Path) -> bool:
    """Whether two trainings gave the same weights, records of epochs and choices, bit by bit."""
    first, second = load_file(one / FINAL), load_file(other / FINAL)
    same = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return same and (one / SAID).read_text() == (other / SAID).read_text()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(asdict(count(chosen.kills, chosen.seed))))
