"""What `vpeft demo` shows: for each kind of task, what is compared on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

BACKBONE = "pocket_vit"

StoryName = Literal["classification", "detection"]


@dataclass(frozen=True)
class Compared:
    """Methods that are compared on one task of a suite.

    Attributes:
        suite, task, tier: of `vpeft bench`.
        methods: what is compared.
        about: the task in words, for the line that announces it.
    """

    suite: str
    task: str
    tier: str
    methods: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class Story:
    """One demo.

    Attributes:
        folder: where its files go unless the user says otherwise.
        first: the comparison whose best method is saved, loaded again and used.
        second: another comparison for the page, if any.
        drawn: how many of the test images are written out and predicted: the first ones, not picked ones.
    """

    folder: Path
    first: Compared
    second: Compared | None
    drawn: int


STORIES: Mapping[StoryName, Story] = {
    "classification": Story(
        folder=Path("runs/demo"),
        first=Compared(
            suite="digits",
            task="classes",
            tier="demo",
            methods=("linear_probe", "lora", "adaptformer", "ssf"),
            about="handwritten digits, one in each image; learning rates are chosen on validation",
        ),
        # What frozen features say little of. Two methods are enough to show it.
        second=Compared(
            suite="pocket",
            task="orientation",
            tier="demo",
            methods=("linear_probe", "lora"),
            about="which way things point",
        ),
        drawn=24,
    ),
    "detection": Story(
        folder=Path("runs/demo-dense"),
        first=Compared(
            suite="pocket-dense",
            task="scenes-masks",
            tier="demo",
            methods=("linear_probe", "lora", "adaptformer"),
            about="balls, blocks, rings and trees with boxes and masks, by the same Mask R-CNN",
        ),
        second=None,
        drawn=8,
    ),
}
