"""The picture: the leading metric against a cost, a panel for each board, as PNG or as SVG for a page.

Methods that train nothing but the head stand at the left edge, apart from the logarithmic axis. The stepped line joins
methods of which each is better than the cheaper one before it by a paired interval that excludes 0; where there are too
few cells for intervals there is no line. Bars are one standard deviation over seeds.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from vpeft.report.board import Board
from vpeft.report.comparison import front
from vpeft.report.cost import PARAMETERS, Cost
from vpeft.report.svg import COLOURS, style, svg_of, svg_style
from vpeft.safe_text import visible_line

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
    """One method in the picture.

    Attributes:
        row: which row of the board it is.
        label, cost, score, std: what is drawn.
        on_front: no other mean is better at no more cost.
        step: the line goes through it: it is surely better than the step before it.
        share: of the bootstrap draws in which it is on the front; None where there are too few cells.
        is_best: it has the best mean.
    """

    row: int
    label: str
    cost: float
    score: float
    std: float
    on_front: bool
    step: bool
    share: float | None
    is_best: bool


def points(board: Board, cost: Cost = PARAMETERS) -> list[Point]:
    """The complete rows whose cost is known, cheapest first."""
    found = []
    for index, row in enumerate(board.rows):
        value = cost.of(row)
        if row.mean is not None and value is not None:
            std = 0.0 if row.std is None or math.isnan(row.std) else row.std
            found.append((index, row, value, row.mean, std))
    sign = board.measure.sign
    found.sort(key=lambda item: (item[2], -sign * item[3]))
    places = front(board, cost)
    shown, best = [], -math.inf
    for index, row, value, score, std in found:
        place = places.get(row.label)
        step, share = (place.step, place.share) if place is not None else (False, None)
        shown.append(Point(index, row.label, value, score, std, sign * score > best, step, share, row is board.best))
        best = max(best, sign * score)
    return shown


def as_png(boards: Sequence[Board], dots_per_inch: int = 160) -> bytes:
    """All boards that have something to show, one below the other. Deterministic for the same numbers."""
    drawn = [board for board in boards if points(board)]
    figure = Figure(figsize=(WIDTH, HEIGHT * max(1, len(drawn))), layout="constrained", facecolor=COLOURS["--paper"])
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(style()):
        axes = figure.subplots(max(1, len(drawn)), 1, squeeze=False)[:, 0]
        for board, panel in zip(drawn, axes, strict=False):
            _draw(panel, board, titled=True)
        if not drawn:
            _draw_nothing(axes[0])
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return stream.getvalue()


def as_svg(board: Board, number: int, cost: Cost = PARAMETERS) -> str:
    """One board as an SVG element for a page; `number` keeps the ids of several apart.

    Every point is a group with the id `point-<number>-<row>` (of another cost than parameters
    `point-<number>-<cost>-<row>`), so that a script can find it.
    """
    name = str(number) if cost is PARAMETERS else f"{number}-{cost.name}"
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    with matplotlib.rc_context(svg_style(name)):
        _draw(figure.subplots(), board, titled=False, name=name, cost=cost)
    return svg_of(figure, name, f"{board.measure.title} against {cost.title}")


def _draw(axes: Axes, board: Board, *, titled: bool, name: str = "", cost: Cost = PARAMETERS) -> None:
    shown = points(board, cost)
    place = _places(axes, shown, cost)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=COLOURS["--line"], linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel(cost.axis)
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
    steps = [point for point in shown if point.step]
    if len(steps) > 1:
        across = [place[point.row] for point in steps]
        up = [measure.factor * point.score for point in steps]
        axes.step(across, up, where="post", color=COLOURS["--front"], linewidth=1.2, alpha=0.55, zorder=2)
    for point in shown:
        colour = COLOURS["--front"] if point.step else COLOURS["--accent"]
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
            zorder=5 if point.step else 4,
        )[0].set_gid(f"point-{name}-{point.row}")
    axes.margins(y=0.16)
    _label(axes, shown, place, measure.factor)


def _draw_nothing(axes: Axes) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, "No method has all of its runs yet.", ha="center", va="center", color=COLOURS["--faint"])


def _places(axes: Axes, shown: Sequence[Point], cost: Cost) -> dict[int, float]:
    """Positions on the axis: log10 of the cost; zero at the left, a gap away from the fewest."""
    counts = [point.cost for point in shown if point.cost > 0]
    low = math.log10(min(counts)) if counts else 4.0
    high = math.log10(max(counts)) if counts else 5.0
    gap = max(0.35, 0.12 * (high - low))
    zero = low - 2 * gap
    has_zero = len(counts) < len(shown)
    powers = range(math.ceil(low - gap / 2), math.floor(high + gap) + 1)
    ticks = [(float(power), _plain(cost.written(10.0**power))) for power in powers]
    if len(ticks) < 2:
        ends = (low, high) if high - low > 0.05 else (low,)
        ticks = [(end, cost.written(10.0**end)) for end in ends]
    if has_zero:
        ticks = [(zero, "0"), *ticks]
        axes.axvline(low - gap, color=COLOURS["--line"], linewidth=1.0, linestyle=(0, (2, 3)), zorder=1)
    axes.set_xticks([tick for tick, _ in ticks], [text for _, text in ticks])
    axes.set_xlim((zero if has_zero else low) - gap, high + 1.6 * gap)
    return {point.row: math.log10(point.cost) if point.cost > 0 else zero for point in shown}


def _plain(written: str) -> str:
    """A round number without the zeros that three digits have: 10.0 k as 10 k."""
    number, _, unit = written.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}".rstrip()


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
    taken += _steps(axes, [(place[point.row], factor * point.score) for point in shown if point.step])
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
