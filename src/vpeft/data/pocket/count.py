"""pocket/count: how many balls? Shaded balls of any colour among blocks as large as they are."""

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
        balls, blocks = label + FEWEST, int(rng.integers(0, 3))
        base = colour(rng, 0.15, 0.85)
        picture = backdrop(rng, base, 0.15)
        hue = contrasting(rng, base, 0.25)  # the balls of a picture are much alike
        light = between(rng, 0, 2 * np.pi)
        middle = between(rng, 6.0, 7.0)
        kinds = rng.permutation(np.arange(balls + blocks)) < balls
        placed: list[tuple[float, float, float]] = []
        for is_ball in kinds.tolist():
            radius = middle * between(rng, 0.9, 1.1)
            for _ in range(60):
                x, y = between(rng, radius, SIDE - radius), between(rng, radius, SIDE - radius)
                if all((x - a) ** 2 + (y - b) ** 2 > (1.05 * (radius + r)) ** 2 for a, b, r in placed):
                    break
            placed.append((x, y, radius))
            if is_ball:
                picture = _ball(picture, x, y, radius, hue + (rng.random(3) - 0.5) * 0.15, light)
            else:
                picture = _block(picture, x, y, radius, contrasting(rng, base, 0.15), rng)
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.02)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="count",
    group="structured",
    title="How many balls?",
    description="One to six shaded balls of any colour on any ground, with up to two blocks that do not count.",
    labels=tuple(str(n) for n in range(FEWEST, MOST + 1)),
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
)
