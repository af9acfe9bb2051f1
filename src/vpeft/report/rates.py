"""How much the learning rate matters: each method's validation score at every searched rate, below its best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vpeft.bench.record import RunRecord
from vpeft.report.board import Board, BoardRow
from vpeft.report.svg import COLOURS, svg_of, svg_style
from vpeft.report.words import Measure
from vpeft.safe_text import visible_line

_ACROSS = 5


@dataclass(frozen=True)
class Sensitivity:
    """What the learning rate does to one method.

    Attributes:
        label: of the method.
        rates: that were searched on every task.
        below: (task, rate) -> how much worse the validation score is than that of the task's best rate; 0 or less.
        one_rate: the single rate with the best mean over tasks.
        loss: how much worse the mean over tasks is at `one_rate` than with each task's best rate: what an untuned run
            loses at least. Both are validation scores, and the best of several is flattered by being chosen by them.
    """

    label: str
    rates: tuple[float, ...]
    below: tuple[tuple[float, ...], ...]
    one_rate: float
    loss: float

    @property
    def middle(self) -> int:
        """Which of the rates is the middle one; of an even number the lower."""
        return (len(self.rates) - 1) // 2

    @property
    def worst(self) -> float:
        """The mean over tasks at the rate where it is worst."""
        return min(self.mean(rate) for rate in range(len(self.rates)))

    def mean(self, rate: int) -> float:
        """The mean over tasks at one of the rates."""
        return fmean(task[rate] for task in self.below)


def sensitivities(board: Board) -> list[Sensitivity]:
    """Of each row whose search is whole: every task with the same rates, at least two."""
    return [found for row in board.rows if (found := _of_row(board, row)) is not None]


def _of_row(board: Board, row: BoardRow) -> Sensitivity | None:
    by_task: dict[str, dict[float, float]] = {}
    for record in searches_of(board, row):
        if record.scores is not None and record.chosen is not None:
            by_task.setdefault(record.task, {})[record.chosen.lr] = board.measure.sign * record.scores.value
    if len(by_task) < len(board.tasks) or not by_task:
        return None
    rates = sorted(set.intersection(*(set(found) for found in by_task.values())))
    if len(rates) < 2:
        return None
    below = tuple(tuple(found[rate] - max(found.values()) for rate in rates) for found in by_task.values())
    means = [fmean(task[index] for task in below) for index in range(len(rates))]
    best = max(range(len(rates)), key=lambda index: means[index])
    return Sensitivity(row.label, tuple(rates), below, rates[best], means[best])


def searches_of(board: Board, row: BoardRow) -> list[RunRecord]:
    """The search runs of a row's methods on this board."""
    return [record for record in board.searches if record.identity.methods == row.methods]


def rate_figure(found: Sequence[Sensitivity], measure: Measure, name: str) -> str:
    """Small pictures, one for each method: thin lines are tasks, the thick one is their mean."""
    down = math.ceil(len(found) / _ACROSS)
    figure = Figure(figsize=(9.0, 1.75 * down + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    factor = measure.factor
    low = min(min(min(task) for task in one.below) for one in found) * factor
    with matplotlib.rc_context(svg_style(name)):
        grid = figure.subplots(down, _ACROSS, squeeze=False, sharey=True)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        for axes, one in zip(grid.flat, found, strict=False):
            places = range(len(one.rates))
            for task in one.below:
                axes.plot(
                    places, [factor * value for value in task], color=COLOURS["--faint"], linewidth=0.7, alpha=0.5
                )
            means = [factor * one.mean(rate) for rate in places]
            axes.plot(places, means, color=COLOURS["--accent"], linewidth=2.0, marker="o", markersize=4)
            axes.set_title(visible_line(one.label), fontsize=9.5, loc="left", color=COLOURS["--ink"])
            axes.set_xticks(list(places), [f"{rate:g}" for rate in one.rates], fontsize=8)
            axes.set_xlim(-0.35, len(one.rates) - 0.65)
            axes.set_ylim(1.08 * min(low, -1e-6), max(0.6, -0.03 * low) if measure.share else -0.06 * min(low, -1e-6))
            axes.tick_params(length=0, labelsize=8)
            axes.grid(axis="y", color=COLOURS["--line"], linewidth=0.7)
            axes.set_axisbelow(True)
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
        figure.supylabel(
            visible_line(f"validation {measure.title} below the best rate{measure.unit}"),
            fontsize=9,
            color=COLOURS["--faint"],
        )
    return svg_of(figure, name, "validation score at each learning rate, below the best one")
