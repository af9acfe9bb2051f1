"""Questions about drawn pictures: how many, which colour, where; and captions of the same pictures.

The pictures are those of `pocket-captions`, one or two groups of equal figures, but each group lies in its own half of
the picture, so that "where are the red circles?" has an answer: left, right, top or bottom. Each picture comes with one
question of each kind. The offline set is `pocket-questions`; its captions are for a captioner that is adapted to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vpeft.data.drawn_splits import random_of_split
from vpeft.data.pocket.task import SIDE, Images
from vpeft.data.pocket_captions import COUNTS, Group, caption, draw_groups, draw_scene, plural

VERSION = 1  # raised when a picture, question or answer changes
SEED = 20_260_131
SIZES = {"train": 600, "val": 100, "test": 200}
PLACES = ("left", "right", "top", "bottom")
KINDS = ("how many", "which colour", "where")


@dataclass(frozen=True)
class Question:
    """One question about a picture.

    Attributes:
        asked, answer: words.
        kind: of `KINDS`.
    """

    asked: str
    answer: str
    kind: str


def area(place: str) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a half of the picture, in pixels."""
    half = SIDE / 2
    return {
        "left": (0.0, 0.0, half, float(SIDE)),
        "right": (half, 0.0, float(SIDE), float(SIDE)),
        "top": (0.0, 0.0, float(SIDE), half),
        "bottom": (0.0, half, float(SIDE), float(SIDE)),
    }[place]


def opposite(place: str) -> str:
    """The other half."""
    return PLACES[PLACES.index(place) ^ 1]


def questions(group: Group, place: str) -> tuple[Question, ...]:
    """One question of each kind about a group in its half; figures and colours tell groups apart."""
    figures = plural(group.figure)
    return (
        Question(f"how many {figures}?", COUNTS[group.count - 1], KINDS[0]),
        Question(f"which colour are the {figures}?", group.colour, KINDS[1]),
        Question(f"where are the {group.colour} {figures}?", place, KINDS[2]),
    )


def draw_questioned(count: int, rng: np.random.Generator) -> tuple[Images, list[str], list[tuple[Question, ...]]]:
    """Pictures (N, 64, 64, 3), the caption of each, and its questions, one of each kind about one of its groups."""
    images, captions, asked = np.zeros((count, SIDE, SIDE, 3), np.uint8), list[str](), list[tuple[Question, ...]]()
    for number in range(count):
        groups = draw_scene(rng, False)
        first = PLACES[int(rng.integers(len(PLACES)))]
        places = (first, opposite(first))[: len(groups)]
        images[number] = draw_groups(groups, rng, [area(place) for place in places])
        captions.append(caption(groups))
        chosen = int(rng.integers(len(groups)))
        asked.append(questions(groups[chosen], places[chosen]))
    return images, captions, asked


def questioned_split(split: str) -> tuple[Images, list[str], list[tuple[Question, ...]]]:
    """Pictures, captions and questions of "train", "val" or "test"."""
    return draw_questioned(SIZES[split], random_of_split(SEED, VERSION, list(SIZES).index(split), "questions"))
