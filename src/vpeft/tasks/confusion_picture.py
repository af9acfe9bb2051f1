"""A confusion matrix as a picture, alone or beside a bar for the score of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..safe_text import visible_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More names or numbers than these cannot be read.
MOST_NAMES = 40
MOST_NUMBERS = 20


def confusion_picture(
    confusion: Sequence[Sequence[int]],
    names: Sequence[str],
    scores: Sequence[float | None] = (),
    score: str = "",
    percent: bool = False,
) -> Figure:
    """The share of each true class (row) that is taken for each class (column).

    Args:
        confusion: counts.
        names: of the classes.
        scores: one for each class, from 0 to 1, drawn as bars beside the matrix; None where a class has none.
        score: what the bars are.
        percent: whether the cells say the shares in percent instead of the counts.
    """
    from matplotlib.figure import Figure

    count = len(names)
    side = min(3 + 0.35 * count, 16.0)
    figure = Figure(figsize=(side * (1.8 if scores else 1) + 1, side), layout="constrained")
    shown = [visible_line(name).replace("$", r"\$") for name in names]
    if not scores:
        _matrix(figure, figure.subplots(), confusion, shown, percent)
        return figure
    matrix, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _matrix(figure, matrix, confusion, shown, percent)
    values = [0.0 if value is None else value for value in scores]
    bars.barh(range(count), values, color="tab:blue")
    bars.set_ylim(count - 0.5, -0.5)  # in the order of the matrix's rows
    bars.set_xlim(0, 1)
    bars.set_xlabel(score)
    if count <= MOST_NAMES:
        bars.set_yticks(range(count), shown, fontsize=7)
        for row, value in enumerate(scores):
            said = "not there" if value is None else f"{value:.3f}"
            inside = value is not None and value > 0.8
            bars.text(
                values[row] + (-0.01 if inside else 0.01),
                row,
                said,
                va="center",
                ha="right" if inside else "left",
                fontsize=7,
                color="white" if inside else "black",
            )
    return figure


def _matrix(
    figure: Figure, axes: Axes, confusion: Sequence[Sequence[int]], names: Sequence[str], percent: bool
) -> None:
    counts = torch.tensor(confusion, dtype=torch.float64)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues")
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    if len(names) <= MOST_NUMBERS:
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{100 * shares[row, column]:.0f}" if percent else f"{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, label="share of the true class")
