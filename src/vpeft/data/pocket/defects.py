"""pocket/defects: surface inspection. Photographed materials with one of six flaws, or none."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

from vpeft.data.pocket.drawing import (
    COLUMNS,
    ROWS,
    Field,
    between,
    clouds,
    cover,
    disc,
    ellipse,
    look_up,
    noisy,
    paint,
    segment,
    to_bytes,
    turned,
)
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

LABELS = ("none", "scratch", "crack", "hole", "stain", "worn", "shifted")
MATERIALS = ("brick.png", "grass.png", "gravel.png")
# each photograph is cut into so many bands; which of them belong to which split
_BANDS = 6
_SPLIT_BANDS = {"train": (0, 2, 4), "val": (5,), "test": (1, 3)}


@cache
def _material(file: str) -> Field:
    with (files("skimage.data") / file).open("rb") as stream:
        found: Field = np.asarray(Image.open(stream).convert("L")) / 255.0
    return found


def _surface(split: str, rng: np.random.Generator) -> tuple[Field, Field, Field]:
    """A band of a material and the (64, 64) coordinates of a turned view into it."""
    whole = _material(MATERIALS[int(rng.integers(len(MATERIALS)))])
    height = whole.shape[0] // _BANDS
    bands = _SPLIT_BANDS[split]
    band = whole[(b := bands[int(rng.integers(len(bands)))]) * height : (b + 1) * height]
    quarter = between(rng, -0.25, 0.25) + (0 if rng.random() < 0.5 else np.pi)
    side = between(rng, 0.4, 0.6) * height
    reach = side * (abs(np.cos(quarter)) + abs(np.sin(quarter))) / 2
    x, y = between(rng, reach, band.shape[1] - reach), between(rng, reach, height - reach)
    u, v = (COLUMNS - SIDE / 2) * side / SIDE, (ROWS - SIDE / 2) * side / SIDE
    return band, x + u * np.cos(quarter) + v * np.sin(quarter), y + v * np.cos(quarter) - u * np.sin(quarter)


def _crack(rng: np.random.Generator) -> Field:
    """A dark line that changes its direction at every step; may branch once."""
    mask = np.zeros((SIDE, SIDE))
    x, y, angle = between(rng, 12, 52), between(rng, 12, 52), between(rng, 0, 2 * np.pi)
    forks = [(x, y, angle, int(rng.integers(5, 9)))]
    if rng.random() < 0.6:
        forks.append((x, y, angle + between(rng, 1.2, 4.5), int(rng.integers(4, 7))))
    for at_x, at_y, heading, length in forks:
        for _ in range(length):
            heading += between(rng, -0.9, 0.9)
            step = between(rng, 5, 9)
            to_x, to_y = at_x + step * np.cos(heading), at_y + step * np.sin(heading)
            mask = np.maximum(mask, cover(segment(at_x, at_y, to_x, to_y, between(rng, 0.7, 1.5))))
            at_x, at_y = to_x, to_y
    return mask


def _flawed(label: str, view: Field, band: Field, x: Field, y: Field, rng: np.random.Generator) -> Field:
    grey = view[..., None] * np.ones(3)
    cx, cy = between(rng, 14, 50), between(rng, 14, 50)
    if label == "scratch":  # straight, bright or dark, thin
        angle, half = between(rng, 0, np.pi), between(rng, 16, 28)
        dx, dy = half * np.cos(angle), half * np.sin(angle)
        mask = cover(segment(cx - dx, cy - dy, cx + dx, cy + dy, between(rng, 0.6, 1.2)))
        return paint(grey, mask * between(rng, 0.7, 1.0), np.full(3, float(rng.random() < 0.6)))
    if label == "crack":
        return paint(grey, _crack(rng) * between(rng, 0.7, 1.0), np.zeros(3))
    if label == "hole":  # dark, sharp edge, lit rim below
        radius = between(rng, 5, 10)
        grey = paint(grey, cover(disc(cx, cy + 1.5, radius + 1.0)) * 0.7, np.ones(3))
        return paint(grey, cover(disc(cx, cy, radius)) * 0.9, np.full(3, 0.05))
    if label == "stain":  # a translucent blot with a ragged edge; the texture shows through
        ragged = ellipse(*turned(cx, cy, between(rng, 0, np.pi)), between(rng, 11, 20), between(rng, 9, 15))
        mask = cover((ragged + (clouds(rng, (8, 16)) - 0.5) * 10) / 2)
        return grey * (1 - mask[..., None] * between(rng, 0.4, 0.65))
    blend = cover((disc(cx, cy, between(rng, 14, 22)) + (clouds(rng, (6, 12)) - 0.5) * 8) / 2)
    if label == "worn":  # the texture is rubbed away
        around = [look_up(band, x + dx, y + dy) for dx in (-5, -2, 2, 5) for dy in (-5, -2, 2, 5)]
        return paint(grey, blend * 0.95, np.mean(around, axis=0)[..., None] * np.ones(3))
    if label == "shifted":  # a piece that does not continue its surroundings
        moved = look_up(band, band.shape[1] - x, band.shape[0] - y)
        sharp = cover(np.maximum(np.abs(COLUMNS - cx) - between(rng, 11, 18), np.abs(ROWS - cy) - between(rng, 11, 18)))
        return paint(grey, sharp, moved[..., None] * np.ones(3))
    return grey


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.permutation(np.arange(count) % len(LABELS))
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        band, x, y = _surface(split, rng)
        picture = _flawed(LABELS[label], look_up(band, x, y), band, x, y, rng)
        # uneven lighting and a tint
        light = 0.75 + 0.5 * clouds(rng, (2, 3))[..., None]
        tint = 0.75 + 0.25 * rng.random(3)
        images[i] = to_bytes(noisy(picture * light * tint * between(rng, 0.7, 1.3), rng, between(rng, 0.005, 0.02)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="defects",
    group="specialised",
    title="Which flaw?",
    description="A patch of brick, grass or gravel under uneven light, sound or with one of six flaws.",
    labels=LABELS,
    source="photographs of materials shipped with scikit-image (cc0textures.com); the flaws are drawn",
    licence="CC0",
    needs=("skimage",),
    draw=draw,
)
