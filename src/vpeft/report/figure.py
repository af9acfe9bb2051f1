"""The picture: the leading metric against trained parameters, a panel for each board, as PNG or as SVG for a page.

Methods that train nothing but the head stand at the left edge, apart from the logarithmic axis. The stepped line joins
the methods that no other beats with as few parameters. Bars are one standard deviation over seeds.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from vpeft.report.board import Board
from vpeft.safe_text import visible_line

# Colours of the picture on paper; in a page each becomes the variable of the same name, so that it follows the theme.
# The values are chosen to be told apart by a colour-blind eye and in print.
COLOURS = {
    "--ink": "#1c2430",
    "--faint": "#687385",
    "--line": "#dfe4ea",
    "--accent": "#0b6bcb",
    "--front": "#c2410c",
    "--paper": "#ffffff",
}
WIDTH, HEIGHT = 9.0, 5.2
# Font size of the labels in points, and the distances from their point that are tried, nearest first.
LABEL = 9.5
_AROUND = [
    (9, 0),
    (-9, 0),
    (0, 10),
    (0, -10),
    (8, 9),
    (-8, 9),
    (8, -9),
    (-8, -9),
    (0, 20),
    (0, -20),
    (14, 18),
    (-14, -18),
]


@dataclass(frozen=True)
class Point:
    """One method in the picture: where it stands, and which row of the board it is."""

    row: int
    label: str
    parameters: int
    score: float
    std: float
    on_front: bool
    is_best: bool


def points(board: Board) -> list[Point]:
    """The complete rows that say how many parameters they train, fewest first."""
    found = []
    for index, row in enumerate(board.rows):
        if row.mean is not None and row.costs.trainable is not None:
            std = 0.0 if row.std is None or math.isnan(row.std) else row.std
            found.append((index, row, row.costs.trainable, row.mean, std))
    sign = board.measure.sign
    found.sort(key=lambda item: (item[2], -sign * item[3]))
    shown, best = [], -math.inf
    for index, row, parameters, score, std in found:
        shown.append(Point(index, row.label, parameters, score, std, sign * score > best, row is board.best))
        best = max(best, sign * score)
    return shown


def as_png(boards: Sequence[Board], dots_per_inch: int = 160) -> bytes:
    """All boards that have something to show, one below the other. Deterministic for the same numbers."""
    drawn = [board for board in boards if points(board)]
    figure = Figure(figsize=(WIDTH, HEIGHT * max(1, len(drawn))), layout="constrained", facecolor=COLOURS["--paper"])
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(_style()):
        axes = figure.subplots(max(1, len(drawn)), 1, squeeze=False)[:, 0]
        for board, panel in zip(drawn, axes, strict=False):
            _draw(panel, board, titled=True)
        if not drawn:
            _draw_nothing(axes[0])
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return stream.getvalue()


def as_svg(board: Board, number: int) -> str:
    """One board as an SVG element for a page; `number` keeps the ids of several apart.

    Every point is a group with the id `point-<number>-<row>`, so that a script can find it.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(_style({"svg.fonttype": "none", "svg.hashsalt": f"vpeft {number}"})):
        _draw(figure.subplots(), board, titled=False, number=number)
        stream = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(stream.getvalue(), f"{board.measure.title} against trained parameters")


def _style(more: Mapping[str, str] | None = None) -> Any:
    # Any: matplotlib's stubs list every key, and this is a plain mapping of a few.
    return {
        **(more or {}),
        "text.parse_math": False,  # a name with dollar signs is a name, and no formula
        "font.size": 10,
        "font.family": "sans-serif",
        "axes.edgecolor": COLOURS["--line"],
        "axes.labelcolor": COLOURS["--faint"],
        "text.color": COLOURS["--ink"],
        "xtick.color": COLOURS["--line"],
        "ytick.color": COLOURS["--line"],
        "xtick.labelcolor": COLOURS["--faint"],
        "ytick.labelcolor": COLOURS["--faint"],
    }


def _draw(axes: Axes, board: Board, *, titled: bool, number: int = 0) -> None:
    shown = points(board)
    place = _places(axes, shown)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=COLOURS["--line"], linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("trained parameters, head not counted")
    measure = board.measure
    better = "" if measure.higher_is_better else ", lower is better"
    mean = f"mean {measure.title} over tasks" if len(board.tasks) > 1 else measure.title
    axes.set_ylabel(visible_line(f"{mean}{measure.unit}{better}"))
    if titled:
        axes.set_title(visible_line(f"{board.title}   "), loc="left", fontweight="bold", fontsize=12)
        seeds = f"{len(board.seeds)} seed{'s' if len(board.seeds) > 1 else ''}"
        tasks = f"{len(board.tasks)} task{'s' if len(board.tasks) > 1 else ''}"
        what = visible_line(f"{board.protocol}, {tasks}, {seeds}")
        axes.set_title(what, loc="right", fontsize=9, color=COLOURS["--faint"])
    front = [point for point in shown if point.on_front]
    if len(front) > 1:
        across = [place[point.row] for point in front]
        up = [measure.factor * point.score for point in front]
        axes.step(across, up, where="post", color=COLOURS["--front"], linewidth=1.2, alpha=0.55, zorder=2)
    for point in shown:
        colour = COLOURS["--front"] if point.on_front else COLOURS["--accent"]
        axes.errorbar(
            [place[point.row]],
            [measure.factor * point.score],
            yerr=[measure.factor * point.std] if point.std else None,
            fmt="o",
            markersize=8,
            markeredgewidth=1.4,
            markerfacecolor=colour,
            markeredgecolor=COLOURS["--paper"],
            ecolor=colour,
            elinewidth=1.4,
            capsize=0,
            zorder=5 if point.on_front else 4,
        )[0].set_gid(f"point-{number}-{point.row}")
    axes.margins(y=0.16)
    _label(axes, shown, place, measure.factor)


def _draw_nothing(axes: Axes) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, "No method has all of its runs yet.", ha="center", va="center", color=COLOURS["--faint"])


def _places(axes: Axes, shown: Sequence[Point]) -> dict[int, float]:
    """Positions on the axis: log10 of the parameters; zero at the left, a gap away from the fewest."""
    counts = [point.parameters for point in shown if point.parameters > 0]
    low = math.log10(min(counts)) if counts else 4.0
    high = math.log10(max(counts)) if counts else 5.0
    gap = max(0.35, 0.12 * (high - low))
    zero = low - 2 * gap
    has_zero = len(counts) < len(shown)
    ticks = [(float(power), _power(power)) for power in range(math.ceil(low - gap / 2), math.floor(high + gap) + 1)]
    if len(ticks) < 2:
        ticks = [(low, _short(10**low)), (high, _short(10**high))] if high - low > 0.05 else [(low, _short(10**low))]
    if has_zero:
        ticks = [(zero, "0"), *ticks]
        axes.axvline(low - gap, color=COLOURS["--line"], linewidth=1.0, linestyle=(0, (2, 3)), zorder=1)
    axes.set_xticks([tick for tick, _ in ticks], [text for _, text in ticks])
    axes.set_xlim((zero if has_zero else low) - gap, high + 1.6 * gap)
    return {point.row: math.log10(point.parameters) if point.parameters > 0 else zero for point in shown}


def _power(power: int) -> str:
    return {3: "1 k", 4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M", 8: "100 M", 9: "1 G"}.get(power, f"1e{power}")


def _short(value: float) -> str:
    return f"{value / 1e6:.2g} M" if value >= 1e6 else f"{value / 1e3:.3g} k" if value >= 1e3 else f"{value:.0f}"


def _label(axes: Axes, shown: Sequence[Point], place: dict[int, float], factor: float) -> None:
    """Names beside the points, each where it covers the least of what is there already."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    figure.draw_without_rendering()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent(renderer)
    taken: list[Bbox] = []
    for point in shown:
        x, y = axes.transData.transform((place[point.row], factor * point.score))
        _, top = axes.transData.transform((0, factor * (point.score + point.std)))
        _, bottom = axes.transData.transform((0, factor * (point.score - point.std)))
        taken += [Bbox.from_extents(x - 6, y - 6, x + 6, y + 6), Bbox.from_extents(x - 1, bottom, x + 1, top)]
    taken += _steps(axes, [(place[point.row], factor * point.score) for point in shown if point.on_front])
    for point in sorted(shown, key=lambda one: -one.score):
        tried: list[tuple[float, int, Annotation, Bbox]] = []
        for across, up in _AROUND:
            text = axes.annotate(
                visible_line(point.label),
                (place[point.row], factor * point.score),
                xytext=(across, up),
                textcoords="offset points",
                ha="left" if across > 0 else "right" if across < 0 else "center",
                va="center",
                fontsize=LABEL,
                fontweight="bold" if point.is_best else "normal",
                zorder=6,
            )
            box = text.get_window_extent(renderer).padded(1)
            tried.append((_covered(box, taken, frame), len(tried), text, box))
        tried.sort(key=lambda item: item[:2])
        for _, _, text, _ in tried[1:]:
            text.remove()
        taken.append(tried[0][3])


def _steps(axes: Axes, front: Sequence[tuple[float, float]]) -> list[Bbox]:
    """The stepped line as thin boxes, so that labels keep off it."""
    corners = [axes.transData.transform(point) for point in front]
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        boxes += [Bbox.from_extents(x0, y0 - 2, x1, y0 + 2), Bbox.from_extents(x1 - 2, y0, x1 + 2, y1)]
    return boxes


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """How much of what is taken a box covers, and of itself sticks out of the frame, in square pixels."""
    covered = 0.0
    for other in taken:
        shared = Bbox.intersection(box, other)
        covered += shared.width * shared.height if shared is not None else 0.0
    inside = Bbox.intersection(box, frame)
    return covered + box.width * box.height - (inside.width * inside.height if inside is not None else 0.0)


def _for_a_page(svg: str, what: str) -> str:
    """Only the element, scaled by the page, in the page's font and in its colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(what)}" ', 1)
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", lambda match: f"font: {match[1]}var(--font)", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var({name})")
    return svg
