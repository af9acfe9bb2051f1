"""Generated clips for `pocket_video`: several things that move, grow, turn, cover one another, come and go at once.

The sets of pocket-video have one event each, by which their classes are named; here up to four things do what they
like, so that no clip has a label. Random numbers are of seeds of their own (`SEED`), and the drawing of shapes is
shared with the offline suites.
"""

from __future__ import annotations

import math
from pathlib import Path

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

FRAMES, SIDE = 16, 64
SEED = 77_190_221  # no set of vpeft has it


def _path(rng: np.random.Generator, low: float, high: float, reach: float) -> Field:
    """A smooth path of one number through all frames: straight, bent, or there and back."""
    even = np.linspace(-0.5, 0.5, FRAMES)
    start, way = between(rng, low, high), between(rng, -reach, reach)
    bend = between(rng, -reach, reach) * 0.5
    found: Field = start + way * even + bend * np.cos(2 * np.pi * even * between(rng, 0.3, 1.2))
    return found


class Thing:
    """A shape with a path for each of its properties."""

    def __init__(self, rng: np.random.Generator, ground: Field) -> None:
        self.kind, self.ink = int(rng.integers(5)), contrasting(rng, ground, 0.15)
        self.ratio = between(rng, 0.3, 1.0)
        moves = rng.random(4) < (0.7, 0.7, 0.4, 0.5)
        self.x = _path(rng, 10, 54, 40.0 if moves[0] else 0.5)
        self.y = _path(rng, 10, 54, 40.0 if moves[1] else 0.5)
        self.size = 10 ** _path(rng, 0.6, 1.15, 0.5 if moves[2] else 0.02)
        self.angle = _path(rng, 0, math.pi, 3.0 if moves[3] else 0.05)
        self.shown: Field = np.ones(FRAMES)
        if rng.random() < 0.25:  # it comes or goes
            when = between(rng, 2, FRAMES - 3)
            rising = np.clip(np.arange(FRAMES) - when, 0, 1)
            self.shown = rising if rng.random() < 0.5 else 1 - rising

    def mask(self, frame: int) -> Field:
        u, v = turned(float(self.x[frame]), float(self.y[frame]), float(self.angle[frame]))
        long = float(self.size[frame])
        short = long * self.ratio
        if self.kind == 0:
            found = cover(ellipse(u, v, long, short))
        elif self.kind == 1:
            found = cover(box(u, v, long, short))
        elif self.kind == 2:
            found = np.maximum(cover(box(u, v, long, short / 3)), cover(box(u, v, short / 3, long)))
        elif self.kind == 3:
            found = cover(np.abs(ellipse(u, v, long, short)) - 0.2 * short)
        else:  # two boxes, so that both ends differ
            found = np.maximum(cover(box(u, v, long, short / 3)), cover(box(u - long * 0.6, v, short / 2, short)))
        return found * float(self.shown[frame])


def clip(rng: np.random.Generator) -> NDArray[np.uint8]:
    """One clip uint8 (16, 64, 64, 3)."""
    ground = colour(rng, 0.05, 0.95)
    background = backdrop(rng, ground, between(rng, 0.1, 0.5))
    things = [Thing(rng, ground) for _ in range(int(rng.integers(1, 5)))]
    drift = rng.random() < 0.3  # the camera moves: the background rolls, with its edges continued
    roll = np.round(_path(rng, 0, 0, 24) if drift else np.zeros(FRAMES)).astype(int)
    frames = []
    for frame in range(FRAMES):
        picture = np.roll(background, int(roll[frame]), axis=1)
        for one in things:
            picture = paint(picture, one.mask(frame), one.ink)
        frames.append(to_bytes(picture))
    return np.stack(frames)


def build(work: Path, count: int) -> NDArray[np.uint8]:
    """Clips uint8 (count, 16, 64, 64, 3) from DIR/clips.npy, which is written where it is not there yet."""
    path = work / "clips.npy"
    if not path.exists():
        part = path.with_suffix(".part.npy")
        made = np.lib.format.open_memmap(part, "w+", np.uint8, (count, FRAMES, SIDE, SIDE, 3))
        for number in range(count):
            made[number] = clip(np.random.default_rng((SEED, number)))
        made.flush()
        part.replace(path)
    found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    if len(found) != count:
        raise SystemExit(
            f"{path} has {len(found)} clips, and {count} are asked for. Remove it, or take another folder."
        )
    return found
