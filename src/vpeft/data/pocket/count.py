"""pocket/count: how many balls? Shaded balls among boxes and bars, of any size and colour, partly hidden."""

from __future__ import annotations

import numpy as np

from vpeft.data.pocket.drawing import (
    COLUMNS,
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

FEWEST, MOST = 1, 6


def _ball(picture: Field, x: float, y: float, radius: float, ink: Field, light: float) -> Field:
    """A matt ball lit from the direction `light`."""
    u, v = (COLUMNS - x) / radius, (ROWS - y) / radius
    depth = np.sqrt(np.maximum(1 - u * u - v * v, 0))
    shade = 0.35 + 0.65 * np.clip(0.6 * (u * np.cos(light) + v * np.sin(light)) + 0.8 * depth, 0, 1)
    return paint(picture, cover(disc(x, y, radius)), shade[..., None] * ink)


def _block(picture: Field, x: float, y: float, radius: float, ink: Field, rng: np.random.Generator) -> Field:
    u, v = turned(x, y, between(rng, 0, np.pi))
    shade = 0.6 + 0.4 * np.clip(u / radius, -1, 1)
    return paint(picture, cover(box(u, v, radius * 0.85, radius * between(rng, 0.35, 0.85))), shade[..., None] * ink)


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.permutation(np.arange(count) % (MOST - FEWEST + 1))
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        balls, blocks = label + FEWEST, int(rng.integers(0, 4))
        base = colour(rng, 0.15, 0.85)
        picture = backdrop(rng, base, 0.2)
        light = between(rng, 0, 2 * np.pi)
        middle = between(rng, 4.5, 7.5)  # the size of the picture's things: area must not tell the count
        kinds = rng.permutation(np.arange(balls + blocks)) < balls
        placed: list[tuple[float, float, float]] = []
        for is_ball in kinds.tolist():
            radius = middle * between(rng, 0.75, 1.3)
            for _ in range(60):
                x, y = between(rng, radius, SIDE - radius), between(rng, radius, SIDE - radius)
                # overlapping by a quarter at most
                if all((x - a) ** 2 + (y - b) ** 2 > (0.85 * (radius + r)) ** 2 for a, b, r in placed):
                    break
            placed.append((x, y, radius))
            ink = contrasting(rng, base, 0.15)
            picture = _ball(picture, x, y, radius, ink, light) if is_ball else _block(picture, x, y, radius, ink, rng)
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.04)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="count",
    group="structured",
    title="How many balls?",
    description="One to six shaded balls of any colour and size, with up to three blocks that do not count.",
    labels=tuple(str(n) for n in range(FEWEST, MOST + 1)),
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
)
