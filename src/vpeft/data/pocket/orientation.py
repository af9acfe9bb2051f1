"""pocket/orientation: which way does it point? A boat or a plane seen from above, turned to one of eight headings."""

from __future__ import annotations

import numpy as np

from vpeft.data.pocket.drawing import (
    Field,
    backdrop,
    between,
    box,
    colour,
    contrasting,
    cover,
    disc,
    ellipse,
    noisy,
    paint,
    to_bytes,
    turned,
)
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

HEADINGS = 8
# of each class's 45 degrees: what lies on a border is nobody's mistake
_SHARE = 0.6


def _boat(u: Field, v: Field) -> tuple[Field, Field]:
    hull = np.maximum(ellipse(u + 4, v, 18, 7), -u - 11)
    return hull, box(u + 3, v, 3.5, 3)


def _plane(u: Field, v: Field) -> tuple[Field, Field]:
    body = ellipse(u, v, 14, 3)
    wings = np.maximum(np.abs(u + np.abs(v) * 0.35 - 2) - 2.5, np.abs(v) - 13)
    tail = np.maximum(np.abs(u + np.abs(v) * 0.4 + 11) - 1.6, np.abs(v) - 5)
    return np.minimum(np.minimum(body, wings), tail), ellipse(u - 10, v, 2, 1.5)


_KINDS = (_boat, _plane)


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.permutation(np.arange(count) % HEADINGS)
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        angle = (label + between(rng, 0.5 - _SHARE / 2, 0.5 + _SHARE / 2)) / HEADINGS * 2 * np.pi
        size = between(rng, 1.1, 1.6)
        x, y = between(rng, 22, 42), between(rng, 22, 42)
        base = colour(rng, 0.15, 0.85)
        picture = backdrop(rng, base, 0.3)
        for _ in range(int(rng.integers(0, 3))):  # litter
            radius = between(rng, 1.5, 4)
            at = between(rng, 0, SIDE), between(rng, 0, SIDE)
            picture = paint(picture, cover(disc(*at, radius)), contrasting(rng, base, 0.1))
        u, v = turned(x, y, angle)
        u, v = u / size, v / size * between(rng, 0.85, 1.2)
        body, marking = _KINDS[int(rng.integers(len(_KINDS)))](u, v)
        ink = contrasting(rng, base, 0.18)
        picture = picture * (1 - 0.35 * cover(np.roll(body, (2, 2), (0, 1)) * size)[..., None])  # its shadow
        picture = paint(picture, cover(body * size), ink)
        picture = paint(picture, cover(marking * size), contrasting(rng, ink, 0.25))
        images[i] = to_bytes(noisy(picture, rng, between(rng, 0.01, 0.03)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="orientation",
    group="structured",
    title="Which way does it point?",
    description="A boat or plane from above, of any colour; the class is its heading in 45 degree steps.",
    labels=tuple(f"{45 * k} to {45 * (k + 1)} degrees" for k in range(HEADINGS)),
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
)
