"""How the grids of a backbone follow the size of its images: the rule by which a place finds the grid of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

Rounding = Literal["floor", "ceil", "nearest"]
"""What becomes of cells that are only partly filled: they are left out ("floor"), padded to whole ones ("ceil"), or
padded where more than half is filled ("nearest")."""


@dataclass(frozen=True)
class Scale:
    """What the grids of all places of one backbone are measured by.

    Attributes:
        size: height and width of the images in pixels for which the grids are stated.
        frames: frames of the clips for which they are stated; None for images.
        patch: pixels per cell behind the patch projection.
        patches: what becomes of pixels that fill no whole patch.
        stages: what becomes of cells that fill no whole cell of a later stage.
    """

    size: tuple[int, int]
    frames: int | None = None
    patch: int = 1
    patches: Rounding = "floor"
    stages: Rounding = "floor"

    def grid(self, size: Sequence[int], stride: int) -> tuple[int, int]:
        """Rows and columns for images of `size` in pixels where `stride` pixels are one cell.

        Patches are cut first, and later stages put their cells together, each with its own rounding.
        """
        if stride % self.patch:
            return _divided(size, stride, self.patches)
        return _divided(_divided(size, self.patch, self.patches), stride // self.patch, self.stages)

    def grids(self, size: Sequence[int], stride: int, stated: tuple[int, int]) -> list[tuple[int, int]]:
        """The grids that images of `size` can have where `stated` is the grid of the backbone's own size.

        The first is the one by the backbone's rule; the others round another way, which the number of tokens can show.
        None where no number of pixels per cell explains the stated grid.
        """
        if tuple(size) == self.size:
            return [stated]
        steps = (stride, stride)
        found: list[tuple[int, int]] = []
        if self.grid(self.size, stride) == stated:
            found.append(self.grid(size, stride))
        elif all(own % cells == 0 for own, cells in zip(self.size, stated, strict=True)):
            steps = (self.size[0] // stated[0], self.size[1] // stated[1])
        else:
            return []
        choices = [sorted({side // step, -(-side // step)}) for side, step in zip(size, steps, strict=True)]
        found += [(rows, columns) for rows, columns in product(*choices) if rows and columns]
        return list(dict.fromkeys(found))

    def times(self, frames: int, stated: int) -> int:
        """Steps of time for clips of `frames`, where the backbone's own clips have `stated` steps."""
        return stated if self.frames is None else max(1, frames * stated // self.frames)


def fitting(grids: Sequence[tuple[int, ...]], count: int | None) -> tuple[int, ...] | None:
    """The first of the grids with `count` cells; the first of all where no number is given; None where none fits."""
    return next((grid for grid in grids if count is None or prod(grid) == count), None)


def _divided(sides: Sequence[int], step: int, rounding: Rounding) -> tuple[int, int]:
    more = {"floor": 0, "ceil": step - 1, "nearest": (step - 1) // 2}[rounding]
    rows, columns = sides
    return (rows + more) // step, (columns + more) // step
