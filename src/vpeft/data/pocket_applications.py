"""Offline sets for applications that the other offline suites leave out, as 'pocket-applications/NAME'.

- `scans`: slices through a drawn chest, one channel of 12 bits stored in 16, with few images and rare classes.
- `quality`: patches of photographs, spoilt more or less, and a score from 0 (spoilt) to 100 (as taken).
- `catalogue`: the pictures of pocket-dense/scenes, each with the names of all the things that it shows.

They are stand-ins that show that a recipe runs: the scans are drawings, and no number on them tells of patients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vpeft.data.drawn_splits import random_of_split, require_packages
from vpeft.data.pocket.drawing import COLUMNS, ROWS, Field, between, clouds, cover, disc, ellipse, noisy, to_bytes
from vpeft.data.pocket.task import SIDE

VERSION = 1  # raised when a picture or a target changes
SEED = 20_261_130
FINDINGS = ("none", "nodule", "consolidation", "fluid")
# Shares of the findings: most scans show none, the rarest is seen twelve times in training.
SHARES = (0.60, 0.22, 0.13, 0.05)
SCANS = {"train": 240, "val": 120, "test": 400}
PHOTOGRAPHS = {"train": 600, "val": 150, "test": 400}
DARKEST, BRIGHTEST = 0, 4095  # twelve bits, as detectors give them


class Drawn(NamedTuple):
    """One split.

    Attributes:
        images: uint16 (N, 64, 64), or uint8 (N, H, W, 3).
        targets: of each image the name of its class, the names of its labels, or its numbers.
    """

    images: NDArray[Any]
    targets: list[Any]


class ApplicationSet(NamedTuple):
    """One set.

    Attributes:
        target: what each image has, as `DataConfig.target` names it.
        labels: names of classes, labels or numbers.
        split: makes one split, the same at every call.
    """

    target: str
    labels: tuple[str, ...]
    split: Callable[[str], Drawn]


def _lungs(shift: Field) -> tuple[Field, Field]:
    """How far (64, 64) each pixel is from the left and the right lung, negative inside."""
    x, y, wide, high = shift
    return (
        ellipse(COLUMNS - (x - wide - 2.5), ROWS - y, wide, high),
        ellipse(COLUMNS - (x + wide + 2.5), ROWS - y, wide * 0.92, high),
    )


def _chest(finding: str, rng: np.random.Generator) -> Field:
    """One slice, from 0 (air) to 1 (bone)."""
    x, y = between(rng, 29, 35), between(rng, 29, 35)
    wide, high = between(rng, 9, 12), between(rng, 13, 18)
    left, right = _lungs(np.array([x, y, wide, high]))
    body = cover(ellipse(COLUMNS - x, ROWS - y, between(rng, 27, 31), between(rng, 22, 27)))
    tissue = 0.42 + 0.06 * clouds(rng, (4, 8))
    lung = 0.10 + 0.08 * clouds(rng, (6, 12, 20))
    picture = body * tissue
    inside = cover(np.minimum(left, right))
    picture = picture * (1 - inside) + lung * inside
    spine = cover(disc(x, y + high + between(rng, 2, 4), between(rng, 3.0, 4.0)))
    picture = picture * (1 - spine) + 0.85 * spine
    heart = cover(ellipse(COLUMNS - (x - between(rng, 1, 4)), ROWS - (y + 3), between(rng, 6, 8), between(rng, 6, 9)))
    picture = picture * (1 - heart) + 0.50 * heart
    side = left if rng.random() < 0.5 else right
    rows, columns = np.nonzero(side < -4)
    at = int(rng.integers(len(rows)))
    cx, cy = float(columns[at]), float(rows[at])
    if finding == "nodule":
        mask = cover(disc(cx, cy, between(rng, 1.8, 3.2))) * between(rng, 0.75, 1.0)
        picture = picture * (1 - mask) + 0.48 * mask
    elif finding == "consolidation":
        ragged = disc(cx, cy, between(rng, 6, 9)) + (clouds(rng, (6, 12)) - 0.5) * 9
        mask = cover(ragged / 2) * cover(side) * between(rng, 0.5, 0.75)
        picture = picture * (1 - mask) + 0.40 * mask
    elif finding == "fluid":
        level = y + between(rng, 0.25, 0.6) * high
        mask = cover(side) * cover(level - ROWS)
        picture = picture * (1 - mask) + 0.38 * mask
    # vessels: small bright dots that are no nodules
    for _ in range(int(rng.integers(3, 8))):
        at = int(rng.integers(len(rows)))
        dot = cover(disc(float(columns[at]), float(rows[at]), between(rng, 0.4, 0.9))) * cover(side)
        picture = picture * (1 - 0.5 * dot) + 0.2 * dot
    return noisy(picture * between(rng, 0.85, 1.15), rng, between(rng, 0.008, 0.02))


@cache
def _scans(split: str) -> Drawn:
    count, rng = SCANS[split], random_of_split(SEED, VERSION, list(SCANS).index(split), "scans")
    ends = np.round(np.cumsum(SHARES) * count).astype(int)
    classes = rng.permutation(np.searchsorted(ends, np.arange(count), side="right"))
    images = np.zeros((count, SIDE, SIDE), np.uint16)
    for index, number in enumerate(classes.tolist()):
        values = np.clip(np.round(_chest(FINDINGS[number], rng), 7), 0, 1) * (BRIGHTEST - DARKEST)
        images[index] = np.floor(values + 0.5).astype(np.uint16)
    return Drawn(images, [FINDINGS[number] for number in classes.tolist()])


def _box_mean(picture: Field, reach: int) -> Field:
    """The mean over (2 reach + 1) squared pixels; the border is repeated."""
    for axis in (0, 1):
        padded = np.pad(picture, [(reach + 1, reach) if one == axis else (0, 0) for one in range(3)], mode="edge")
        total = np.cumsum(padded, axis=axis)
        length = picture.shape[axis]
        upper = np.take(total, range(2 * reach + 1, 2 * reach + 1 + length), axis=axis)
        picture = (upper - np.take(total, range(length), axis=axis)) / (2 * reach + 1)
    return picture


def _spoilt(picture: Field, how: str, much: float, rng: np.random.Generator) -> Field:
    """A picture (64, 64, 3) from 0 to 1, spoilt: `much` is 0 for not at all and 1 for as far as it goes here."""
    if how == "blur":
        strong = picture
        for _ in range(3):
            strong = _box_mean(strong, 4)
        some = _box_mean(_box_mean(picture, 1), 1)
        return picture + (some - picture) * min(1, 2 * much) + (strong - some) * max(0, 2 * much - 1)
    if how == "noise":
        return noisy(picture, rng, 0.25 * much)
    if how == "blocks":
        coarse: Field = picture.reshape(8, 8, 8, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1)
        return picture + (coarse - picture) * 0.9 * much
    return 0.5 + (picture - 0.5) * (1 - 0.85 * much) - 0.25 * much  # faded


SPOILT = ("blur", "noise", "blocks", "faded")


@cache
def _quality(split: str) -> Drawn:
    from vpeft.data.pocket import photographs

    require_packages(photographs.TASK.needs, "The set pocket-applications/quality")
    count, rng = PHOTOGRAPHS[split], random_of_split(SEED, VERSION, list(PHOTOGRAPHS).index(split), "quality")
    # patches of pocket/photographs: no pixel of a photograph is in two splits
    patches, _ = photographs.draw(split, count, rng)
    images, targets = np.zeros_like(patches), []
    for index, patch in enumerate(patches):
        much = float(rng.random())
        how = SPOILT[int(rng.integers(len(SPOILT)))]
        images[index] = to_bytes(_spoilt(patch / 255.0, how, much, rng))
        targets.append((round(100 * (1 - much), 3),))
    return Drawn(images, targets)


@cache
def _catalogue(split: str) -> Drawn:
    from vpeft.data.pocket_dense import pocket_dense_sets

    scenes = pocket_dense_sets()["scenes"]
    pictures = scenes.load(split)
    shown = [{scenes.object_labels[thing.label] for thing in pictures.objects(index)} for index in range(len(pictures))]
    return Drawn(pictures.images, [tuple(name for name in scenes.object_labels if name in there) for there in shown])


def application_sets() -> dict[str, ApplicationSet]:
    """All sets by name."""
    from vpeft.data.pocket_dense import pocket_dense_sets

    return {
        "catalogue": ApplicationSet("labels", pocket_dense_sets()["scenes"].object_labels, _catalogue),
        "quality": ApplicationSet("values", ("quality",), _quality),
        "scans": ApplicationSet("label", FINDINGS, _scans),
    }
