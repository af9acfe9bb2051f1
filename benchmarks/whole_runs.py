"""What whole runs cost with and without records, alone and several in one pass; for `speed.py`.

A run costs something once (proofs), something for each image (making records), something for each epoch and something
for each image in each epoch. The four are told apart by runs on two numbers of images, in which the processor time is
read at the end of every epoch; from them follows what 100 epochs of 1,000 images cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor

import vpeft
from vpeft.methods import Method
from vpeft.training.concurrent_run import Run
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation
from vpeft.training.together import fit_together

CLASSES = 100
IMAGES, EPOCHS, BATCH = 1000, 100, 16


class Pictures:
    """Random images, always the same."""

    def __init__(self, count: int, size: tuple[int, int], classes: int = CLASSES) -> None:
        self.images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))
        self.targets = [i % classes for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class Flipped(Pictures):
    """The same images, at random turned around, as augmentation does: no record of them stays true."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return (image.flip(-1) if float(torch.rand(())) < 0.5 else image), label


@dataclass(frozen=True)
class Way:
    """How runs are made: with which accelerations, how many in one pass, on images of which kind."""

    method: Method
    model: str
    choice: str = "auto"
    runs: int = 1
    kind: type[Pictures] = Pictures
    batch: int = BATCH

    def timed(self, count: int, epochs: int) -> tuple[float, float]:
        """Processor seconds of everything before and after the epochs, and of an epoch (of all runs)."""
        pictures = self.kind(count, timm.create_model(self.model).patch_embed.img_size)
        models, ends = [], [list[float]() for _ in range(self.runs)]
        for _ in range(self.runs):
            torch.manual_seed(0)
            base = timm.create_model(self.model)
            models.append(vpeft.tune(base, self.method, num_classes=CLASSES, show=False, verify=False))
        every = [
            Optimisation(batch=self.batch, acceleration=self.choice, warmup=0, epochs=epochs, lr=1e-3 * 2**k)
            for k in range(self.runs)
        ]
        notes: list[Callable[..., None]] = [partial(note_end, one) for one in ends]
        start = time.process_time()
        if self.runs == 1:
            fit(models[0], pictures, optimisation=every[0], progress=False, after_epoch=notes[0])
        else:
            several = [Run(*pair, after_epoch=note) for *pair, note in zip(models, every, notes, strict=True)]
            fit_together(several, pictures, progress=False)
        whole = time.process_time() - start
        lengths = [statistics.median(b - a for a, b in pairwise(one)) for one in ends]
        # Side by side, an epoch of one run lasts as long as those of all.
        epoch = lengths[0] if self.kind is Flipped else sum(lengths)
        return max(0.0, whole - epochs * epoch), epoch

    def cost(self, small: int, large: int, epochs: int) -> Cost:
        """Everything that a run costs."""
        (once, short), (grown, long) = self.timed(small, epochs), self.timed(large, epochs)
        image, each = max(0.0, grown - once) / (large - small), max(0.0, long - short) / (large - small)
        return Cost(max(0.0, once - small * image), image, max(0.0, short - small * each), each)

    def plain_cost(self, count: int, epochs: int = 4) -> Cost:
        """Of runs without records, where nothing is done once an image, and an epoch costs what its images cost."""
        once, epoch = self.timed(count, epochs)
        return Cost(once, 0.0, 0.0, epoch / count)


@dataclass(frozen=True)
class Cost:
    """Processor seconds of a run: once, for each image, for each epoch, for each image in each epoch."""

    once: float
    image: float
    epoch: float
    image_epoch: float

    def of(self, images: int = IMAGES, epochs: int = EPOCHS) -> float:
        return self.once + images * self.image + epochs * (self.epoch + images * self.image_epoch)


def note_end(ends: list[float], *_: object) -> None:
    ends.append(time.process_time())


def whole_run(method: Method, options: argparse.Namespace, epochs: int) -> dict[str, Any]:
    """With records against without any acceleration, alternating."""
    count = options.images
    plain, fast = list[Cost](), list[Cost]()
    for _ in range(options.runs):
        plain.append(Way(method, options.model, "off").plain_cost(count))
        fast.append(Way(method, options.model).cost(count, 3 * count, epochs))
    ratios = [a.of() / b.of() for a, b in zip(plain, fast, strict=True)]
    epoch = {"plain": middle([one.epoch + IMAGES * one.image_epoch for one in plain])}
    epoch["recorded"] = middle([one.epoch + IMAGES * one.image_epoch for one in fast])
    return {
        "epoch_seconds": epoch,
        "start_seconds": {"plain": middle([one.once for one in plain]), "recorded": middle([one.once for one in fast])},
        "record_seconds": middle([one.image * IMAGES for one in fast]),
        "images": IMAGES,
        "step_ratio": epoch["plain"] / epoch["recorded"],
        "times_faster": middle(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "repeated": options.runs,
    }


def together(
    method: Method, options: argparse.Namespace, timed: int, batch: int = BATCH, epochs: int = EPOCHS, runs: int = 4
) -> dict[str, Any]:
    """Several runs in one pass against as many times one run, alternating; `timed` epochs on records are measured.

    On records: against single runs that make records of their own, and against single runs without any acceleration.
    On images that change there are no records: what the single runs compute at every step, one pass computes once.
    """
    count, way = options.images, partial(Way, method, options.model, batch=batch)
    seconds: dict[str, list[float]] = {}
    for _ in range(options.runs):
        made = {
            "plain": way(choice="off").plain_cost(count),
            "alone": way().cost(count, 3 * count, timed),
            "together": way(runs=runs).cost(count, 3 * count, timed),
            "changing, alone": way(kind=Flipped).plain_cost(count),
            "changing, together": way(kind=Flipped, runs=runs).plain_cost(count),
        }
        for name, one in made.items():
            seconds.setdefault(name, []).append(one.of(epochs=epochs))
            print(f"  {name:20} {seconds[name][-1]:8.1f} s  {one}", flush=True)
    pairs = {
        "records": ("together", "alone"),
        "plain": ("together", "plain"),
        "changing": ("changing, together", "changing, alone"),
    }
    ratios = {
        name: [a / (runs * b) for a, b in zip(seconds[one], seconds[other], strict=True)]
        for name, (one, other) in pairs.items()
    }
    return {
        "runs": runs,
        "seconds": {name: middle(values) for name, values in seconds.items()},
        "ratios": {
            name: {"ratio": middle(values), "least": min(values), "most": max(values)}
            for name, values in ratios.items()
        },
        "repeated": options.runs,
    }


def middle(values: list[float]) -> float:
    return statistics.median(values)
