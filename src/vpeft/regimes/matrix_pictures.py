"""Pictures of a stream: the accuracy matrix as a heat map, and the curve over the tasks with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t

from vpeft.regimes.accuracy_matrix import AccuracyMatrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# More numbers than these cannot be read in their cells.
MOST_NUMBERS = 20


def heat_map(matrix: AccuracyMatrix, title: str = "") -> Figure:
    """The accuracy in percent on each task (column) after each task (row); cells that were not measured stay empty."""
    from matplotlib.figure import Figure

    rows, columns = len(matrix.values), len(matrix.counts)
    cells = np.full((rows, columns), np.nan)
    for i, row in enumerate(matrix.values):
        for j, value in enumerate(row):
            if value is not None:
                cells[i, j] = 100 * value
    figure = Figure(figsize=(2.5 + 0.5 * columns, 1.8 + 0.4 * rows), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    if columns <= MOST_NUMBERS:
        for i in range(rows):
            for j in range(columns):
                if not np.isnan(cells[i, j]):
                    dark = cells[i, j] < 60
                    said = f"{cells[i, j]:.0f}"
                    axes.text(j, i, said, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(columns), [str(j + 1) for j in range(columns)])
    axes.set_yticks(range(rows), [str(i + 1) for i in range(rows)])
    axes.set_xlabel("accuracy on task")
    axes.set_ylabel("after task")
    axes.set_title(title, fontsize=10)
    figure.colorbar(shown, label="%")
    return figure


def curves(runs: Mapping[str, Sequence[Sequence[float]]], title: str = "") -> Figure:
    """The accuracy on all classes so far over the tasks: the mean of several runs and its 95 % interval (Student's t).

    Args:
        runs: for each name the curves of its runs (seeds, class orders), all of one length.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, each in runs.items():
        values = 100 * np.asarray(each, dtype=float)
        steps = np.arange(1, values.shape[1] + 1)
        mean = values.mean(0)
        (line,) = axes.plot(steps, mean, marker="o", markersize=3, label=name.replace("$", r"\$"))
        if len(values) > 1:
            half = t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
            axes.fill_between(steps, mean - half, mean + half, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("tasks learnt")
    axes.set_ylabel("accuracy on the classes so far, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if runs:
        axes.legend(fontsize=8)
    return figure
