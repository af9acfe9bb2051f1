"""Cheap probes of frozen features: what a data set looks like to a backbone, in a few numbers.

One pass of the frozen backbone over some images gives the pooled feature and the mean token after blocks at several
depths. On each of them a linear classifier in closed form (ridge regression onto the classes) is fitted to training
images and scored on validation images. The numbers are its accuracies above chance, (a - 1/K) / (1 - 1/K): where in the
depth of the backbone the classes can be read is what natural, specialised and structured tasks differ in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpeft.backbones.backbone import Backbone
from vpeft.backbones.features import Features
from vpeft.batch import Batch
from vpeft.errors import VpeftError
from vpeft.head import Head
from vpeft.methods import get
from vpeft.training.batches import Samples
from vpeft.training.run import ReadyRun

# Of each split. Enough for a signature: the accuracy of 200 images is known to 3 points.
MOST_IMAGES = 600
BATCH = 64
# Of the ridge, as a share of the mean square of a feature times the number of images.
RIDGE = 0.1
# Depths in shares of the blocks.
DEPTHS = {"early": 0.25, "middle": 0.5, "late": 0.75, "last": 1.0}
# What adds nothing to the backbone: the head alone.
_NOTHING = "linear_probe"


class CannotProbe(VpeftError):
    """The data have no classes, or no validation images."""


@dataclass(frozen=True)
class Probed:
    """The probes by name; the seconds of all of it, and of the backbone's forward passes alone; the images read."""

    values: Mapping[str, float]
    seconds: float
    forward_seconds: float
    images: int


class ProbeReader(Head):
    """Gives the means of the places that it reads, side by side in a list; it has no parameters."""

    def __init__(self, reads: tuple[str, ...]) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, features: Features, batch: Batch | None = None) -> list[Tensor]:
        """Return one tensor (B, D) for each place."""
        found = []
        for name in self.reads:
            value = features[name]
            found.append(value if value.dim() == 2 else features.tokens(name).mean(dim=1))
        return found


def probe(ready: ReadyRun, *, most: int = MOST_IMAGES) -> Probed:
    """Probe the training and validation images of a run that has not begun.

    Raises:
        CannotProbe: the targets are no classes, or there are no validation images.
    """
    if ready.val is None:
        raise CannotProbe("Choosing needs validation images, and there are none. Set --data.val-fraction, such as 0.2.")
    places = _places(ready.tuned.description)
    tuned = ready.tuned
    before = time.perf_counter()
    tuned.attach(get(_NOTHING)(), name="probe", head=ProbeReader(tuple(places.values())))
    try:
        plain = ready.task.dataset(ready.data.train, False)
        train, train_classes, spent = _features(ready, plain, most)
        val, val_classes, more = _features(ready, ready.val, most)
    finally:
        tuned.detach("probe")
    classes = len(ready.task.labels)
    values = {
        name: above_chance(_ridge_accuracy(x, train_classes, y, val_classes, classes), classes)
        for name, x, y in zip(places, train, val, strict=True)
    }
    images = len(train_classes) + len(val_classes)
    return Probed(values, time.perf_counter() - before, spent + more, images)


def above_chance(accuracy: float, classes: int) -> float:
    """0 at chance, 1 where all is right."""
    return (accuracy - 1 / classes) / (1 - 1 / classes) if classes > 1 else 0.0


def _places(backbone: Backbone) -> dict[str, str]:
    """The names of the probes, each with the place that it reads."""
    depth = len(backbone.blocks)
    found = {"outlet": "outlet"}
    for name, share in DEPTHS.items():
        if depth:
            found[name] = backbone.blocks[max(0, round(share * depth) - 1)].name
    return found


def _features(ready: ReadyRun, samples: Samples, most: int) -> tuple[list[Tensor], Tensor, float]:
    """The features of `most` samples, spread over all of them: one (N, D) for each place, the classes (N,), seconds."""
    tuned = ready.tuned
    count = min(most, len(samples))
    picks = [index * len(samples) // count for index in range(count)]
    device = next(tuned.parameters()).device
    parts: list[list[Tensor]] = []
    classes: list[Tensor] = []
    spent, training = 0.0, tuned.training
    tuned.eval()
    try:
        with torch.inference_mode():
            for start in range(0, count, BATCH):
                batch = ready.task.collate([samples[index] for index in picks[start : start + BATCH]])
                classes.append(_classes(batch.targets))
                begun = time.perf_counter()
                outputs: Any = tuned(batch.to(device).inputs)
                parts.append([one.float().cpu() for one in outputs])
                spent += time.perf_counter() - begun
    finally:
        tuned.train(training)
    return [torch.cat(one) for one in zip(*parts, strict=True)], torch.cat(classes), spent


def _classes(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor) or targets.dim() != 1 or targets.is_floating_point():
        raise CannotProbe(
            "The records that `vpeft auto` chooses from are of classification, and these targets are no classes."
            " Compare methods yourself: vpeft train a.toml b.toml."
        )
    return targets.cpu()


def _ridge_accuracy(train: Tensor, train_classes: Tensor, val: Tensor, val_classes: Tensor, classes: int) -> float:
    """The accuracy on `val` (M, D) of a ridge regression of one-hot classes on `train` (N, D)."""
    train, val = train.double(), val.double()
    mean, scale = train.mean(dim=0), train.std(dim=0).clamp(min=1e-6)
    train, val = (train - mean) / scale, (val - mean) / scale
    targets = torch.nn.functional.one_hot(train_classes.long(), classes).double()
    centre = targets.mean(dim=0)
    gram = train.T @ train + RIDGE * len(train) * torch.eye(train.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, train.T @ (targets - centre))
    predicted = (val @ weight + centre).argmax(dim=1)
    return float((predicted == val_classes).double().mean())
