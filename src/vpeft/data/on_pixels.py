"""Targets that lie on the pixels of an image: what is looked at before the first step, and what that gave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

from vpeft.data.problems import Kind

CheckDepth = Literal["decode", "header", "none"]
Size = tuple[int, int]
# The class number of pixels that do not count, as in Pascal VOC and Cityscapes.
IGNORED = 255


class Note(NamedTuple):
    """Something that is wrong with a target and is mended by the rule that the title of its kind states."""

    kind: Kind
    detail: str


class CheckedTarget(NamedTuple):
    """What looking at one target gave.

    Attributes:
        target: the same, mended where a rule says how, with what was found out about it.
        content: sha256 of what it holds, "" if that was not read.
        fault: why the image is left out: the kind of problem, and the detail.
        unreadable: what is wrong with a file that it needs.
        notes: what was mended.
        boxes: how many boxes there are, how many of them leave the image or have no area, and how many of those would
            fit if their four numbers were meant in the other usual way.
    """

    target: Any
    content: str = ""
    fault: tuple[Kind, str] | None = None
    unreadable: str = ""
    notes: tuple[Note, ...] = ()
    boxes: tuple[int, int, int] = (0, 0, 0)


class OnPixels(ABC):
    """A target of one image that goes through the transform with the image."""

    __slots__ = ()

    @abstractmethod
    def checked(self, depth: CheckDepth, size: Size | None, classes: int | None) -> CheckedTarget:
        """Look at it as deep as asked.

        Args:
            depth: decode it, read headers, or only see that its files are there.
            size: (H, W) of the image where it was decoded or its header was read.
            classes: how many classes the source names; None takes all numbers that are there.
        """
