"""The demo's picture: test images with the adapter's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vpeft.safe_text import visible_line

_COLUMNS = 8
# Told apart without colour vision too: wrong ones also say what would have been right.
_RIGHT, _WRONG = "#1b6e53", "#b3261e"


class Shown(NamedTuple):
    """One image: its file, its pixels (H, W, 3), its label, the prediction, and its probability."""

    file: Path
    pixels: NDArray[np.uint8]
    label: str
    said: str
    probability: float


def write_picture(shown: Sequence[Shown], path: Path, title: str) -> Path:
    """Draw the images in rows, each with its prediction below, into a PNG file."""
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(1.2 * _COLUMNS, 1.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, shown, strict=False):
        axes.imshow(one.pixels, interpolation="nearest")
        right = one.said == one.label
        text = f"{one.said}  {one.probability:.0%}" if right else f"{one.said}  {one.probability:.0%}, is {one.label}"
        colour = _RIGHT if right else _WRONG
        axes.set_title(visible_line(text), y=-0.22, fontsize=9, color=colour, parse_math=False)
    figure.suptitle(visible_line(title), fontsize=11, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
