"""The demo's picture: images that were never seen, with what the adapter says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

_COLUMNS = 8
# Told apart without colour vision too: wrong ones also say what would have been right.
_RIGHT, _WRONG = "#1b6e53", "#b3261e"


class Shown(NamedTuple):
    """One image: its file, its pixels (H, W, 3), its label, what was said of it, and how sure that was."""

    file: Path
    pixels: NDArray[np.uint8]
    label: str
    said: str
    probability: float


def write_picture(shown: Sequence[Shown], path: Path, title: str) -> Path:
    """Draw the images in rows, each with the prediction under it, into a PNG file."""
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(1.2 * _COLUMNS, 1.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, shown, strict=False):
        axes.imshow(one.pixels, interpolation="nearest")
        right = one.said == one.label
        text = f"{one.said}  {one.probability:.0%}" if right else f"{one.said}  {one.probability:.0%}, is {one.label}"
        axes.set_title(text, y=-0.22, fontsize=9, color=_RIGHT if right else _WRONG)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
