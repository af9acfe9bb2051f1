"""Drawn pictures with captions: one or two groups of figures, told by number, colour and figure.

"two red circles and one blue square": the pictures of the offline set `pocket-captions`, for retrieval and contrastive
learning. Some pairs of a colour and a figure (`HELD_OUT`) are in no training picture, so that the test has captions
whose words are all known and whose composition is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vpeft.data.drawn_splits import random_of_split
from vpeft.data.pocket.drawing import (
    Field,
    backdrop,
    between,
    box,
    cover,
    disc,
    noisy,
    paint,
    to_bytes,
    turned,
)
from vpeft.data.pocket.task import SIDE, Images

VERSION = 1  # raised when a picture or caption changes
SEED = 20_260_118
SIZES = {"train": 2000, "val": 300, "test": 600}

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.12, 0.65, 0.2),
    "blue": (0.15, 0.25, 0.9),
    "yellow": (0.92, 0.85, 0.15),
    "purple": (0.6, 0.15, 0.75),
    "orange": (0.95, 0.5, 0.1),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}
FIGURES = ("circle", "ring", "square", "triangle", "cross", "bar")
COUNTS = ("one", "two", "three", "four")
HELD_OUT = frozenset(
    (colour, figure)
    for place, colour in enumerate(COLOURS)
    for number, figure in enumerate(FIGURES)
    if (place + 2 * number) % 7 == 0
)


@dataclass(frozen=True)
class Group:
    """Some equal figures.

    Attributes:
        count: 1 to 4.
        colour, figure: words of `COLOURS` and `FIGURES`.
    """

    count: int
    colour: str
    figure: str

    @property
    def words(self) -> str:
        """ "two red circles"."""
        return f"{COUNTS[self.count - 1]} {self.colour} {plural(self.figure) if self.count > 1 else self.figure}"


def plural(figure: str) -> str:
    """More than one of a figure."""
    return f"{figure}es" if figure.endswith("s") else f"{figure}s"


def caption(groups: tuple[Group, ...]) -> str:
    """The groups in words, in their order."""
    return " and ".join(group.words for group in groups)


def _figure(name: str, x: float, y: float, radius: float, angle: float) -> Field:
    """The signed distance of one figure."""
    u, v = turned(x, y, angle)
    if name == "circle":
        return disc(x, y, radius)
    if name == "ring":
        found: Field = np.abs(disc(x, y, 0.72 * radius)) - 0.24 * radius
        return found
    if name == "square":
        return box(u, v, 0.8 * radius, 0.8 * radius)
    if name == "triangle":
        sides = [np.cos(turn) * u + np.sin(turn) * v for turn in (np.pi / 2, np.pi * 7 / 6, -np.pi / 6)]
        return np.asarray(np.maximum.reduce(sides) - 0.55 * radius)
    if name == "cross":
        return np.minimum(box(u, v, radius, 0.3 * radius), box(u, v, 0.3 * radius, radius))
    return box(u, v, radius, 0.34 * radius)


def draw_groups(
    groups: tuple[Group, ...], rng: np.random.Generator, areas: Sequence[tuple[float, float, float, float]] = ()
) -> NDArray[np.uint8]:
    """A picture (64, 64, 3) of the groups, their figures at random places that do not overlap, on a grey ground.

    `areas` are the rectangles (left, top, right, bottom) in which the groups lie; the whole picture by default.
    """
    inks = [np.asarray(COLOURS[group.colour]) for group in groups]
    while True:
        grey = between(rng, 0.2, 0.8)
        base = np.full(3, grey) + (rng.random(3) - 0.5) * 0.12
        if all(float(np.abs(ink - base).max()) > 0.25 for ink in inks):
            break
    picture = backdrop(rng, base, 0.12)
    total = sum(group.count for group in groups)
    radius = between(rng, 8.5, 11.0) if total <= 3 and not areas else between(rng, 6.0, 8.0)
    placed: list[tuple[float, float]] = []
    for number, (group, ink) in enumerate(zip(groups, inks, strict=True)):
        left, top, right, bottom = areas[number] if areas else (0.0, 0.0, SIDE, SIDE)
        for _ in range(group.count):
            for _ in range(200):
                x, y = between(rng, left + radius, right - radius), between(rng, top + radius, bottom - radius)
                if all((x - a) ** 2 + (y - b) ** 2 > (2.1 * radius) ** 2 for a, b in placed):
                    break
            placed.append((x, y))
            shade = np.clip(ink + (rng.random(3) - 0.5) * 0.12, 0, 1)
            size = radius * between(rng, 0.85, 1.0)
            picture = paint(picture, cover(_figure(group.figure, x, y, size, between(rng, 0, 2 * np.pi))), shade)
    return to_bytes(noisy(picture, rng, between(rng, 0.01, 0.04)))


def draw_scene(rng: np.random.Generator, held_out: bool) -> tuple[Group, ...]:
    """One or two groups of different colours and figures; with `held_out`, one of them of a pair in `HELD_OUT`."""
    while True:
        several = bool(rng.random() < 0.6)
        colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[: 1 + several]]
        figures = [FIGURES[i] for i in rng.permutation(len(FIGURES))[: 1 + several]]
        pairs = list(zip(colours, figures, strict=True))
        new = [pair in HELD_OUT for pair in pairs]
        if any(new) == held_out:
            return tuple(Group(1 + int(rng.integers(0, 4)), colour, figure) for colour, figure in pairs)


def draw_captioned(count: int, rng: np.random.Generator, held_out: float = 0.0) -> tuple[Images, list[str]]:
    """Pictures (N, 64, 64, 3) and their captions, all different as long as there are enough.

    Args:
        count: N.
        rng: of all draws.
        held_out: share of the pictures with a pair of `HELD_OUT`; the others have none.
    """
    images, captions, seen = np.zeros((count, SIDE, SIDE, 3), np.uint8), list[str](), set[str]()
    for number in range(count):
        for _ in range(100):
            groups = draw_scene(rng, number < held_out * count)
            if caption(groups) not in seen:
                break
        seen.add(caption(groups))
        images[number] = draw_groups(groups, rng)
        captions.append(caption(groups))
    return images, captions


def captioned_split(split: str) -> tuple[Images, list[str]]:
    """Pictures and captions of "train", "val" or "test"; half of val and test have a composition that is new."""
    place = list(SIZES).index(split)
    rng = random_of_split(SEED, VERSION, place, "captions")
    return draw_captioned(SIZES[split], rng, 0.0 if split == "train" else 0.5)
