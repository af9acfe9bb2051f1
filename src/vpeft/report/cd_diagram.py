"""The critical-difference diagram: mean ranks on a line, with a bar over methods that are not told apart.

The form of Demšar (2006): rank 1 at the left, the best half labelled at the left, the other half at the right, the
critical difference drawn above the axis.
"""

from __future__ import annotations

import math

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vpeft.report.comparison import Comparison
from vpeft.report.svg import COLOURS, svg_of, svg_style
from vpeft.safe_text import visible_line

_ROW, _BAR = 0.27, 0.13  # inches of a label's row and of a bar's


def cd_diagram(found: Comparison, name: str) -> str:
    """The diagram as an SVG element; `name` keeps the ids of several apart."""
    ranks = found.friedman.ranks
    count = len(found.order)
    half = math.ceil(count / 2)
    above, below = 0.62, 0.2 + _BAR * len(found.bars)
    height = above + below + _ROW * (half + 0.5)
    figure = Figure(figsize=(9.0, height))
    FigureCanvasAgg(figure)
    ink, faint, line, accent = (COLOURS[f"--{part}"] for part in ("ink", "faint", "line", "accent"))
    with matplotlib.rc_context(svg_style(name)):
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0.0, 9.0)
        axes.set_ylim(-(height - above), above)
        left, right = 1.9, 7.1

        def place(rank: float) -> float:
            return left + (rank - 1) / max(1, count - 1) * (right - left)

        axes.plot([left, right], [0, 0], color=faint, linewidth=1.1)
        for rank in range(1, count + 1):
            axes.plot([place(rank)] * 2, [0, 0.07], color=faint, linewidth=1.0)
            axes.text(place(rank), 0.12, str(rank), ha="center", va="bottom", fontsize=9, color=faint)
        end = min(place(1 + found.critical_difference), 8.6)
        axes.plot([left, end], [0.42, 0.42], color=accent, linewidth=1.6)
        for edge in (left, end):
            axes.plot([edge, edge], [0.38, 0.46], color=accent, linewidth=1.2)
        axes.text(
            end + 0.08, 0.42, f"CD {found.critical_difference:.2f}", ha="left", va="center", fontsize=9, color=accent
        )
        for row, bar in enumerate(found.bars):
            y = -0.12 - _BAR * row
            ends = [place(ranks[label]) for label in (bar[0], bar[-1])]
            axes.plot([ends[0] - 0.04, ends[1] + 0.04], [y, y], color=ink, linewidth=3.2, solid_capstyle="round")
        for index, label in enumerate(found.order):
            best = index < half
            row = index if best else count - 1 - index
            x, y = place(ranks[label]), -(below + _ROW * (row + 0.5))
            edge = left - 0.15 if best else right + 0.15
            axes.plot([x, x, edge], [0, y, y], color=line, linewidth=1.0, zorder=0)
            axes.plot([x], [0], marker="o", markersize=4, color=accent)
            text = f"{label}  {ranks[label]:.2f}" if best else f"{ranks[label]:.2f}  {label}"
            axes.text(
                edge - 0.06 if best else edge + 0.06,
                y,
                visible_line(text),
                ha="right" if best else "left",
                va="center",
                fontsize=9.5,
                fontweight="bold" if index == 0 else "normal",
            )
    return svg_of(figure, name, "mean ranks with the critical difference")
