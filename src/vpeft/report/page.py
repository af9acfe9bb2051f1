"""The report as one HTML page that needs nothing else: no network, no other file but the records it links to."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vpeft.bench.record import RunRecord, State
from vpeft.method_spec import text_of
from vpeft.report import words
from vpeft.report.board import Board, BoardRow, Column
from vpeft.report.cd_diagram import cd_diagram
from vpeft.report.comparison import ROPE, compared, front
from vpeft.report.cost import COSTS, PARAMETERS, Cost
from vpeft.report.figure import Point, as_svg, points
from vpeft.report.pages import anchors, method_pages, task_pages
from vpeft.report.published import PublishedTable
from vpeft.report.rates import rate_figure, sensitivities
from vpeft.report.tables import state_of, to_best
from vpeft.safe_text import visible


@dataclass(frozen=True)
class Machine:
    """One combination of machine and versions, and what was made there."""

    hardware: str
    system: str
    versions: str
    runs: int
    seconds: float
    first: str
    last: str


@dataclass(frozen=True)
class Pictured:
    """The pictures of one method on one task, as addresses that hold their data; and its score on those samples."""

    method: str
    score: str
    pictures: Mapping[str, str]


def as_html(
    boards: Sequence[Board],
    records: Sequence[RunRecord],
    reported: Sequence[PublishedTable],
    place: Callable[[str], Path],
    page: Path,
    pictures: Callable[[str], Mapping[str, bytes]],
) -> str:
    """The page.

    Args:
        boards, records: what the ledger holds.
        reported: published tables, shown in sections of their own.
        place: gives the file that holds the record of a key.
        page: where the page will lie; links lead from it.
        pictures: gives the pictures of the run of a key, PNG files by name.
    """
    environment = Environment(
        loader=PackageLoader("vpeft.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=words.percent,
        spread=words.spread,
        count=words.count,
        size=words.size,
        seconds=words.seconds,
        signed=words.signed,
    )
    script = environment.get_template("page.js").render()
    return environment.get_template("page.html").render(
        script=Markup(script),
        policy=_policy(script),
        boards=[_shown(board, number, pictures) for number, board in enumerate(boards)],
        summary=_summary(boards, records),
        methods=method_pages(boards),
        tasks=task_pages(boards),
        anchor=anchors(boards),
        costs=COSTS,
        places=_places(records),
        failures=[record for record in records if record.state in (State.failed, State.out_of_memory)],
        records=sorted(
            records, key=lambda one: (one.suite, one.task, one.label, one.identity.purpose, one.identity.seed)
        ),
        reported=reported,
        link=lambda record: quote(os.path.relpath(place(record.key), page.parent).replace(os.sep, "/")),
        state_of=state_of,
        text_of=text_of,
        score_of=_record_score,
        titles=list(dict.fromkeys(board.measure.title for board in boards)),
    )


def _seen(value: Any) -> Any:
    """What the template writes, with invisible and direction-changing characters made visible."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _policy(script: str) -> str:
    """The page's content security policy: its own script and styles, and nothing from anywhere else."""
    allowed = base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode()
    # Styles are inline because the tint of each cell is an attribute; a style cannot run code.
    return (
        f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _shown(board: Board, number: int, pictures: Callable[[str], Mapping[str, bytes]]) -> dict[str, Any]:
    """A board with what the template cannot work out."""
    pictures_of_costs = [(cost, drawn) for cost in COSTS if (drawn := points(board, cost))]
    lows, highs = _ranges(board)
    comparison, rates = compared(board), sensitivities(board)
    return {
        "it": board,
        "number": number,
        "against": [(cost, Markup(as_svg(board, number, cost))) for cost, _ in pictures_of_costs],
        "sure": any(point.share is not None for _, drawn in pictures_of_costs for point in drawn),
        "tips": {
            _id(number, cost, point): _tip(board, board.rows[point.row], cost, point)
            for cost, drawn in pictures_of_costs
            for point in drawn
        },
        "front": {cost.name: front(board, cost) for cost in COSTS},
        "compared": comparison,
        "rope": ROPE,
        "ranks": None if comparison is None else Markup(cd_diagram(comparison, f"ranks {number}")),
        "rates": rates,
        "rates_svg": Markup(rate_figure(rates, board.measure, f"rates {number}")) if rates else None,
        "grouped": len(board.groups) > 1,
        "to_best": {row.label: to_best(board, row) for row in board.rows},
        "inflated": any(row.inflation is not None for row in board.rows),
        "tied": any(row.tie is not None for row in board.rows),
        "shade": {row.label: _shades(row, lows, highs, board.measure.higher_is_better) for row in board.rows},
        "chosen": [(row, _choices(board, row)) for row in board.rows],
        "pictured": [(task.name, found) for task in board.tasks if (found := _pictured(board, task, pictures))],
    }


def _pictured(board: Board, task: Column, pictures: Callable[[str], Mapping[str, bytes]]) -> list[Pictured]:
    """The pictures of one task, a group for each method: those of its first run, or of the search that it rests on."""
    found = []
    for row in board.rows:
        for record in sorted(row.records, key=lambda one: one.identity.seed):
            if (record.task.split("/", 1)[-1], record.identity.data) != (task.name, task.data) or not record.chosen:
                continue
            shown = next((made for key in (record.key, *record.chosen.searched) if (made := pictures(key))), None)
            if shown is not None:
                score = record.chosen.validation
                said = "" if score is None else f"{board.measure.title} {board.measure.number(score)}"
                found.append(Pictured(row.label, said, {name: _inline(data) for name, data in shown.items()}))
                break
    return found


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _id(number: int, cost: Cost, point: Point) -> str:
    """The id of a point, as `as_svg` gives it."""
    return f"point-{number}-{point.row}" if cost is PARAMETERS else f"point-{number}-{cost.name}-{point.row}"


def _tip(board: Board, row: BoardRow, cost: Cost, point: Point) -> dict[str, Any]:
    measure = board.measure
    lines = [
        (measure.title, f"{measure.number(row.mean, 2)} {measure.spread(row.std, 2)}".rstrip()),
        ("trained", f"{row.costs.trainable:,}" if row.costs.trainable is not None else words.DASH),
        ("PPT", words.DASH if row.ppt is None else f"{row.ppt:.4f}"),
        ("stored", words.size(row.costs.stored_bytes)),
        ("kept for backward", words.size(row.costs.saved_bytes)),
        ("step", words.seconds(row.costs.step_seconds)),
    ]
    if cost is not PARAMETERS:
        lines = [lines[0], (cost.title, cost.written(point.cost))]
    if point.share is not None:
        lines.append(("on the front", f"{100 * point.share:.0f} % of draws"))
    if len(board.groups) > 1:
        lines[1:1] = [(group or "other", measure.number(mean)) for group, mean in row.group_means.items()]
    return {"title": row.label, "lines": lines}


def _record_score(record: RunRecord) -> str:
    """The leading value of one run with its name, or a dash."""
    return words.DASH if record.scores is None else record.scores.sentence()


def _ranges(board: Board) -> tuple[list[float], list[float]]:
    """The lowest and the highest mean of each task."""
    lows, highs = [], []
    for task in range(len(board.tasks)):
        means = [found[0] for row in board.rows if (found := row.cell(task)) is not None]
        lows.append(min(means, default=0.0))
        highs.append(max(means, default=0.0))
    return lows, highs


def _shades(row: BoardRow, lows: Sequence[float], highs: Sequence[float], higher_is_better: bool) -> list[int]:
    """Per task how deep its cell is tinted, 0 to 100: from the worst to the best method of that task."""
    shades = []
    for task, (low, high) in enumerate(zip(lows, highs, strict=True)):
        found = row.cell(task)
        above = (found[0] - low) / (high - low) if found is not None and high > low else None
        shades.append(0 if above is None else round(100 * (above if higher_is_better else 1 - above)))
    return shades


def _choices(board: Board, row: BoardRow) -> list[str]:
    """Per task the learning rate and decay that the final runs used."""
    shown = []
    for task in board.tasks:
        found = {
            f"{record.chosen.lr:g} · {record.chosen.weight_decay:g}"
            for record in row.records
            if record.chosen is not None
            and (record.task.split("/", 1)[-1], record.identity.data) == (task.name, task.data)
        }
        shown.append(", ".join(sorted(found)) or words.DASH)
    return shown


def _summary(boards: Sequence[Board], records: Sequence[RunRecord]) -> dict[str, Any]:
    states = Counter(record.state for record in records)
    spent = sum(record.costs.wall_seconds or 0.0 for record in records if record.costs is not None)
    instants = sorted(record.finished for record in records if record.finished)
    return {
        "runs": len(records),
        "done": states[State.done],
        "failed": states[State.failed] + states[State.out_of_memory],
        "open": states[State.planned] + states[State.running],
        "searched": sum(record.identity.purpose == "search" for record in records),
        "spent": words.seconds(spent),
        "methods": len({row.label for board in boards for row in board.rows}),
        "tasks": len({(board.suite, task.name) for board in boards for task in board.tasks}),
        "last": instants[-1][:10] if instants else None,
    }


def _places(records: Sequence[RunRecord]) -> list[Machine]:
    """Where the runs were made, most runs first."""
    found: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        if record.provenance is not None and record.state.finished:
            made = record.provenance
            threads = f", {made.threads} thread{'s' if made.threads > 1 else ''} a run" if made.threads else ""
            versions = " · ".join(f"{name} {version}" for name, version in made.versions.items())
            found.setdefault((made.hardware + threads, made.system, versions), []).append(record)
    places = []
    for (hardware, system, versions), made_there in found.items():
        instants = sorted(record.finished for record in made_there if record.finished)
        spent = sum(record.costs.wall_seconds or 0.0 for record in made_there if record.costs is not None)
        first, last = (instants[0], instants[-1]) if instants else ("", "")
        places.append(Machine(hardware, system, versions, len(made_there), spent, first, last))
    return sorted(places, key=lambda place: -place.runs)
