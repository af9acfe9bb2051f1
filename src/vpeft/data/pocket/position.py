"""pocket/position: where is the ring? A five by five grid; discs, half rings and bars around it are of no account."""

from __future__ import annotations

import numpy as np

from vpeft.data.pocket.drawing import (
    ROWS,
    Field,
    backdrop,
    between,
    box,
    colour,
    contrasting,
    cover,
    disc,
    noisy,
    paint,
    to_bytes,
    turned,
)
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

GRID = 5
_MARGIN = 7.0


def _distraction(x: float, y: float, radius: float, rng: np.random.Generator) -> Field:
    kind = int(rng.integers(3))
    if kind == 0:
        return disc(x, y, radius)
    u, v = turned(x, y, between(rng, 0, 2 * np.pi))
    if kind == 1:
        return box(u, v, radius, radius * 0.4)
    half_ring = np.abs(np.sqrt(u * u + v * v) - radius * 0.75) - radius * 0.25
    return np.maximum(half_ring, u)


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.permutation(np.arange(count) % GRID**2)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    cell = (SIDE - 2 * _MARGIN) / GRID
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, GRID)
        x = _MARGIN + (column + between(rng, 0.1, 0.9)) * cell
        y = _MARGIN + (row + between(rng, 0.1, 0.9)) * cell
        radius = between(rng, 4.5, 7.5)
        base = colour(rng, 0.15, 0.85)
        picture = backdrop(rng, base, 0.25)
        placed = [(x, y, radius)]
        for _ in range(int(rng.integers(2, 6))):
            size = between(rng, 4, 8)
            for _ in range(30):
                a, b = between(rng, 3, SIDE - 3), between(rng, 3, SIDE - 3)
                if all((a - c) ** 2 + (b - d) ** 2 > (size + r + 1) ** 2 for c, d, r in placed):
                    placed.append((a, b, size))
                    picture = paint(picture, cover(_distraction(a, b, size, rng)), contrasting(rng, base, 0.15))
                    break
        distance = np.sqrt((ROWS.T - x) ** 2 + (ROWS - y) ** 2)
        ring = cover(np.abs(distance - radius * 0.75) - radius * 0.25)
        picture = paint(picture, ring, contrasting(rng, base, 0.15))
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.05)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="position",
    group="structured",
    title="Where is the ring?",
    description="A closed ring among discs, bars and half rings; the class is its cell in a five by five grid.",
    labels=tuple(f"row {row + 1} column {column + 1}" for row in range(GRID) for column in range(GRID)),
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
)
