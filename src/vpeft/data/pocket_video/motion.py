"""pocket-video/motion: what happens? Each class has a twin that is the same played backwards.

A single frame, or all frames in any order, cannot tell a class from its twin: a model that does not see the order of
frames is right half of the time at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.drawing import (
    Field,
    backdrop,
    between,
    box,
    colour,
    contrasting,
    cover,
    ellipse,
    paint,
    to_bytes,
    turned,
)
from vpeft.data.pocket_video.video_set import FRAMES, SIDE, DrawnClips, VideoSet

# A class and its twin, one after the other.
LABELS = (
    *("right", "left", "down", "up", "nearer", "farther"),
    *("clockwise", "anticlockwise", "covers", "uncovers", "appears", "vanishes"),
)


@dataclass(frozen=True)
class Thing:
    """An object: its kind, its colour, and the ratio of its two axes."""

    kind: int
    ink: Field
    ratio: float

    def mask(self, x: float, y: float, size: float, angle: float) -> Field:
        """How much of each pixel (64, 64) it covers; `size` is half of its longer axis in pixels."""
        u, v = turned(x, y, angle)
        short = size * self.ratio
        if self.kind == 0:
            return cover(ellipse(u, v, size, short))
        if self.kind == 1:
            return cover(box(u, v, size, short))
        if self.kind == 2:  # a cross
            return np.maximum(cover(box(u, v, size, short / 2.5)), cover(box(u, v, size / 2.5, short)))
        ring = np.abs(ellipse(u, v, size, short)) - 0.22 * short
        return cover(ring)


def thing(rng: np.random.Generator, ground: Field, kinds: int = 4, least: float = 0.55, most: float = 1.0) -> Thing:
    """A random object whose colour differs from the ground's."""
    return Thing(int(rng.integers(kinds)), contrasting(rng, ground, 0.25), between(rng, least, most))


def times(rng: np.random.Generator) -> Field:
    """The share of a movement that is done at each frame, from 0 at the first to 1 at the last, at a random pace.

    Every pace is the same played backwards, so that twins share it.
    """
    even = np.linspace(0, 1, FRAMES)
    bend = between(rng, -0.25, 0.25)
    found: Field = even + bend * np.sin(2 * np.pi * even) / np.pi
    return found


Scene = Callable[[np.random.Generator, Field, Field, int], list[Field]]
"""(random numbers, ground colour, background (64, 64, 3), axis) -> the pictures of all frames."""


def _moves(rng: np.random.Generator, ground: Field, background: Field, axis: int) -> list[Field]:
    one, size, angle = thing(rng, ground), between(rng, 6, 11), between(rng, 0, np.pi)
    way = between(rng, 14, 30)
    middle = [between(rng, 24, 40), between(rng, 24, 40)]
    drift = between(rng, -3, 3)
    frames = []
    for share in times(rng):
        place = list(middle)
        place[axis] += (share - 0.5) * way
        place[1 - axis] += (share - 0.5) * drift
        frames.append(paint(background, one.mask(place[0], place[1], size, angle), one.ink))
    return frames


def _comes(rng: np.random.Generator, ground: Field, background: Field, axis: int) -> list[Field]:
    one, angle = thing(rng, ground), between(rng, 0, np.pi)
    small, growth = between(rng, 4, 8), between(rng, 1.7, 2.6)
    x, y = between(rng, 24, 40), between(rng, 24, 40)
    dx, dy = between(rng, -3, 3), between(rng, -3, 3)
    return [
        paint(background, one.mask(x + share * dx, y + share * dy, small * growth**share, angle), one.ink)
        for share in times(rng)
    ]


def _turns(rng: np.random.Generator, ground: Field, background: Field, axis: int) -> list[Field]:
    # Long objects, so that a turn is seen; less than half a turn, so that its direction is.
    one = thing(rng, ground, kinds=2, least=0.25, most=0.5)
    size, start, turn = between(rng, 10, 17), between(rng, 0, np.pi), between(rng, 0.7, 2.2)
    x, y = between(rng, 24, 40), between(rng, 24, 40)
    return [paint(background, one.mask(x, y, size, start + share * turn), one.ink) for share in times(rng)]


def _covers(rng: np.random.Generator, ground: Field, background: Field, axis: int) -> list[Field]:
    still, screen = thing(rng, ground), thing(rng, ground, kinds=2, least=0.85)
    size, angle = between(rng, 5, 8), between(rng, 0, np.pi)
    x, y = between(rng, 24, 40), between(rng, 24, 40)
    from_where, way = between(rng, 0, 2 * np.pi), between(rng, 20, 30)
    large, tilt = size * between(rng, 1.5, 1.8), between(rng, 0, np.pi)
    behind = paint(background, still.mask(x, y, size, angle), still.ink)
    frames = []
    for share in times(rng):
        rest = (1 - share) * way
        mask = screen.mask(x + rest * np.cos(from_where), y + rest * np.sin(from_where), large, tilt)
        frames.append(paint(behind, mask, screen.ink))
    return frames


def _appears(rng: np.random.Generator, ground: Field, background: Field, axis: int) -> list[Field]:
    one, size, angle = thing(rng, ground), between(rng, 6, 12), between(rng, 0, np.pi)
    x, y = between(rng, 18, 46), between(rng, 18, 46)
    mask = one.mask(x, y, size, angle)
    # Half of it is there in the middle of the frame at which it comes, which is none of the first or last three.
    when = between(rng, 3, FRAMES - 4)
    return [paint(background, mask * min(1.0, max(0.0, number - when)), one.ink) for number in range(FRAMES)]


# For each pair of twins, how the first of them is drawn; axis 0 is across, 1 is down.
_SCENES: tuple[tuple[Scene, int], ...] = (
    (_moves, 0),
    (_moves, 1),
    (_comes, 0),
    (_turns, 0),
    (_covers, 0),
    (_appears, 0),
)


def draw(split: str, count: int, rng: np.random.Generator) -> DrawnClips:
    """Clips on a busy ground with a second object that stays, so that being there tells nothing."""
    labels = (np.arange(count) % len(LABELS))[rng.permutation(count)].astype(np.int64)
    frames = np.zeros((count, FRAMES, SIDE, SIDE, 3), np.uint8)
    for place, label in enumerate(labels.tolist()):
        pair, backwards = divmod(label, 2)
        frames[place] = clip(rng, pair, bool(backwards))
    return DrawnClips(frames, labels)


def clip(rng: np.random.Generator, pair: int, backwards: bool) -> NDArray[np.uint8]:
    """One clip uint8 (16, 64, 64, 3) of a pair of twins, number `pair` of `LABELS` by two."""
    ground = colour(rng, 0.1, 0.9)
    background = backdrop(rng, ground, 0.3)
    if rng.random() < 0.7:
        other = thing(rng, ground)
        corner = [between(rng, 2, 14) if rng.random() < 0.5 else between(rng, 50, 62) for _ in range(2)]
        mask = other.mask(corner[0], corner[1], between(rng, 4, 9), between(rng, 0, np.pi))
        background = paint(background, mask, other.ink)
    scene, axis = _SCENES[pair]
    made = scene(rng, ground, background, axis)
    pixels = np.stack([to_bytes(frame) for frame in made])
    return pixels[::-1] if backwards else pixels


SET = VideoSet(
    name="motion",
    title="What happens?",
    description="A drawn object moves to a side, comes nearer, turns, covers another, appears, or one of these played "
    "backwards, on a busy ground.",
    labels=LABELS,
    source="drawn",
    licence="Apache-2.0",
    draw=draw,
)
