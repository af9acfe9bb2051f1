"""pocket/distance: how far away is the nearest vehicle? A road in perspective, as KITTI's distance task has it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from vpeft.data.pocket.drawing import (
    COLUMNS,
    ROWS,
    Field,
    backdrop,
    between,
    box,
    clouds,
    colour,
    contrasting,
    cover,
    ellipse,
    noisy,
    paint,
    to_bytes,
)
from vpeft.data.pocket.task import SIDE, Images, Labels, PocketTask

EDGES = (4.0, 5.7, 8.2, 11.7, 16.7, 24.0)  # metres; each bin is 1.43 times as deep as the one before
LABELS = tuple(f"{near:g} to {far:g} m" for near, far in pairwise(EDGES))
_FOCAL = 60.0  # pixels: what is as wide as it is far fills nearly the whole picture
# width and height in metres of a car, a van, a lorry: a lorry looks as large as a car that is half as far away
_KINDS = ((1.8, 1.45), (2.0, 2.1), (2.5, 3.2))


class _Road:
    """A level road seen by a camera of random pitch, height and place on it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.horizon = between(rng, 12, 36)
        self.eye = between(rng, 1.4, 1.8)  # metres above the road
        self.aim = between(rng, 22, 42)  # the column in which the road ends
        self.half = between(rng, 2.8, 4.5)
        self.shift = between(rng, -1.0, 1.0) * self.half * 0.5  # of the camera off the middle of the road

    def row(self, depth: float) -> float:
        return self.horizon + _FOCAL * self.eye / depth

    def column(self, across: float, depth: float) -> float:
        return self.aim + _FOCAL * (across - self.shift) / depth

    def ground(self, rng: np.random.Generator) -> Field:
        sky, grass = colour(rng, 0.3, 1.0), colour(rng, 0.1, 0.8)
        tar = np.full(3, between(rng, 0.15, 0.65)) + (rng.random(3) - 0.5) * 0.15
        below = np.maximum(ROWS - self.horizon, 0.05)
        depth = _FOCAL * self.eye / below
        across = (COLUMNS - self.aim) * depth / _FOCAL + self.shift
        picture = backdrop(rng, sky, 0.3)
        land = paint(backdrop(rng, grass, 0.3), cover((np.abs(across) - self.half) * _FOCAL / depth), tar)
        dashed = np.sin(depth * 2 * np.pi / between(rng, 3, 8) + between(rng, 0, 6)) > 0
        line = cover((np.abs(across) - 0.12) * _FOCAL / depth) * dashed
        picture = paint(picture, cover(self.horizon - ROWS), paint(land, line, np.full(3, between(rng, 0.7, 1.0))))
        return picture


def _roadside(picture: Field, road: _Road, depth: float, rng: np.random.Generator) -> Field:
    """A house or a tree beside the road."""
    scale, side = _FOCAL / depth, 1 if rng.random() < 0.5 else -1
    wide, tall = between(rng, 1, 4), between(rng, 2, 7)
    x = road.column(side * (road.half + wide / 2 + between(rng, 0.3, 5)), depth)
    foot = road.row(depth)
    ink = colour(rng, 0.05, 0.9)
    if rng.random() < 0.5:
        half = tall * scale / 2
        return paint(picture, cover(box(COLUMNS - x, ROWS - foot + half, wide * scale / 2, half)), ink)
    trunk = box(COLUMNS - x, ROWS - foot + tall * scale * 0.3, 0.15 * scale, tall * scale * 0.3)
    picture = paint(picture, cover(trunk), ink * 0.5)
    crown = ellipse(COLUMNS - x, ROWS - foot + tall * scale * 0.7, wide * scale / 2, tall * scale * 0.35)
    return paint(picture, cover(crown), ink[None, None] * (0.7 + 0.6 * clouds(rng, (8, 16))[..., None]))


def _vehicle(picture: Field, road: _Road, depth: float, rng: np.random.Generator) -> Field:
    """The back of a vehicle that stands on the road."""
    scale, kind = _FOCAL / depth, int(rng.integers(len(_KINDS)))
    wide, tall = (size * scale * between(rng, 0.92, 1.08) for size in _KINDS[kind])
    room = road.half - 0.5 * _KINDS[kind][0]
    low, high = (np.clip((edge - road.aim) * depth / _FOCAL + road.shift, -room, room) for edge in (6, SIDE - 6))
    x, foot = road.column(between(rng, float(low), float(high)), depth), road.row(depth)
    ink = contrasting(rng, np.full(3, 0.4), 0.1)
    u, v = COLUMNS - x, ROWS - foot  # v is negative above the ground
    picture = paint(picture, cover(ellipse(u, v, wide * 0.6, tall * 0.07 + 0.3)) * 0.6, np.zeros(3))
    for side in (-1, 1):
        wheel = box(u - side * wide * 0.36, v + tall * 0.1, wide * 0.1, tall * 0.1)
        picture = paint(picture, cover(wheel), np.full(3, 0.05))
    waist = 0.55 if kind == 0 else 0.94
    body = box(u, v + tall * (0.1 + waist) / 2, wide / 2, tall * (waist - 0.1) / 2)
    if kind == 0:
        body = np.minimum(body, box(u, v + tall * 0.75, wide * 0.4, tall * 0.25))
    picture = paint(picture, cover(body), ink)
    if kind < 2:  # a lorry has no rear window
        pane = box(u, v + tall * 0.76, wide * 0.33, tall * 0.13)
        picture = paint(picture, cover(pane), np.full(3, between(rng, 0.05, 0.25)))
    for side in (-1, 1):
        lamp = box(u - side * wide * 0.4, v + tall * (0.42 if kind == 0 else 0.22), wide * 0.07, tall * 0.05)
        picture = paint(picture, cover(lamp), np.array([0.9, 0.1, 0.1]))
    return picture


def draw(split: str, count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.permutation(np.arange(count) % len(LABELS))
    images = np.zeros((count, SIDE, SIDE, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        near, far = EDGES[label], EDGES[label + 1]
        depth = near * (far / near) ** between(rng, 0.12, 0.88)
        while True:  # a camera that looks up too far does not see where the vehicle stands
            road = _Road(rng)
            if road.row(depth) < SIDE - 3:
                break
        picture = road.ground(rng)
        things = [(depth * between(rng, 1.5, 4), True) for _ in range(int(rng.integers(0, 3)))]
        things += [(between(rng, 5, 40), False) for _ in range(int(rng.integers(1, 5)))]
        for at, is_vehicle in sorted([*things, (depth, True)], reverse=True):  # the near hides the far
            picture = (_vehicle if is_vehicle else _roadside)(picture, road, at, rng)
        light = between(rng, 0.6, 1.2) * (0.85 + 0.3 * rng.random(3))
        images[i] = to_bytes(noisy(picture * light, rng, between(rng, 0.01, 0.04)))
    return images, labels.astype(np.int64)


TASK = PocketTask(
    name="distance",
    group="structured",
    title="How far away?",
    description="The nearest car, van or lorry on a road, 4 to 24 metres off; pitch and height of the camera vary.",
    labels=LABELS,
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
)
