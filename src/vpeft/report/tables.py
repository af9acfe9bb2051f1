"""The boards as tables: for the terminal, as markdown, and every run as one line of CSV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vpeft.bench.record import Costs, RecordedScores, RunRecord, State
from vpeft.method_spec import text_of
from vpeft.report import words
from vpeft.report.board import Board, BoardRow
from vpeft.safe_text import markdown, visible_line, write_csv

# (heading, value of a row) for what every table of methods shows after the score.
_COSTS: tuple[tuple[str, Callable[[BoardRow], str]], ...] = (
    ("trained", lambda row: words.count(row.costs.trainable)),
    ("with head", lambda row: words.count(row.costs.trainable_with_head)),
    ("stored", lambda row: words.size(row.costs.stored_bytes)),
    ("kept/step", lambda row: words.size(row.costs.saved_bytes)),
    ("step", lambda row: words.seconds(row.costs.step_seconds)),
    ("run", lambda row: words.seconds(row.costs.wall_seconds)),
)


def headings(board: Board) -> list[str]:
    """The columns of a board's table of methods."""
    groups = list(board.groups) if len(board.groups) > 1 else []
    return ["method", board.measure.title, "± std", *groups, "PPT", "rank", "to best", *(name for name, _ in _COSTS)]


def line(board: Board, row: BoardRow) -> list[str]:
    """A row's cells, under `headings`."""
    measure = board.measure
    groups = [measure.number(row.group_means.get(group)) for group in board.groups] if len(board.groups) > 1 else []
    return [
        row.label,
        measure.number(row.mean) if row.complete else state_of(row),
        measure.spread(row.std).removeprefix("± "),
        *groups,
        words.DASH if row.ppt is None else f"{row.ppt:.4f}",
        words.DASH if row.rank is None else f"{row.rank:.2f}",
        to_best(board, row),
        *(show(row) for _, show in _COSTS),
    ]


def state_of(row: BoardRow) -> str:
    """Why a row has no mean."""
    failures = row.failures
    if len(failures) == len(row.records) and failures:
        return "out of memory" if all(one.state is State.out_of_memory for one in failures) else "failed"
    return f"{len(row.holes)} missing"


def to_best(board: Board, row: BoardRow) -> str:
    """The paired difference to the best row with its 95 % interval where that means something."""
    if row is board.best:
        return "best"
    if row.behind is None:
        return words.DASH
    signed = board.measure.signed
    difference = signed(row.behind)
    if row.interval is None:
        return difference
    return f"{difference} [{signed(row.interval.low)}, {signed(row.interval.high)}]"


def cell(board: Board, row: BoardRow, task: int) -> str:
    """A row's score on one task."""
    found, measure = row.cell(task), board.measure
    return words.DASH if found is None else f"{measure.number(found[0])} {measure.spread(found[1])}".rstrip()


def _cells(board: Board, row: BoardRow) -> list[str]:
    """A row's scores on all tasks."""
    return [cell(board, row, task) for task in range(len(board.tasks))]


def on_terminal(boards: Sequence[Board]) -> RenderableType:
    """All boards for a rich console."""
    parts: list[RenderableType] = []
    for board in boards:
        seeds = f"{len(board.seeds)} seed{'s' if len(board.seeds) > 1 else ''}"
        tasks = f"{len(board.tasks)} task{'s' if len(board.tasks) > 1 else ''}"
        parts.append(MethodTable(board, f"{board.title}   {board.protocol}, {tasks} x {seeds}"))
        if len(board.tasks) > 1:
            parts.append(_tasks_on_terminal(board))
        parts += [Text(visible_line(f"! {note}"), style="yellow") for note in board.notes]
    return Group(*parts)


# What a narrow terminal goes without, first to last; the page and the CSV have everything.
_DISPENSABLE = ("with head", "rank", "run", "step", "kept/step", "stored", "PPT", "± std", "to best")


class MethodTable:
    """A board's table of methods with as many columns as the terminal has room for; what is left out is named."""

    def __init__(self, board: Board, title: str) -> None:
        self.board, self.title = board, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        heads = [visible_line(head) for head in headings(self.board)]
        rows = [[visible_line(cell) for cell in line(self.board, row)] for row in self.board.rows]
        widths = {head: max(len(head), *(len(row[i]) for row in rows)) + 3 for i, head in enumerate(heads)}
        left_out = [head for head in heads if all(row[heads.index(head)] in ("", words.DASH) for row in rows)]
        for head in _DISPENSABLE:
            if sum(width for name, width in widths.items() if name not in left_out) + 1 <= options.max_width:
                break
            if head in heads and head not in left_out:
                left_out.append(head)
        shown = [i for i, head in enumerate(heads) if head not in left_out]
        dropped = [head for head in _DISPENSABLE if head in left_out]
        table = Table(
            title=escape(visible_line(self.title)),
            title_justify="left",
            title_style="bold",
            caption=f"not shown here: {', '.join(dropped)}" if dropped else None,
            caption_justify="left",
        )
        for i in shown:
            table.add_column(Text(heads[i]), justify="left" if i == 0 else "right", no_wrap=True)
        for row, cells in zip(self.board.rows, rows, strict=True):
            table.add_row(*(Text(cells[i]) for i in shown), style="bold" if row is self.board.best else "")
        yield table


def _tasks_on_terminal(board: Board) -> Table:
    table = Table(title=escape(visible_line(f"{board.measure.title} by task")), title_justify="left", title_style="dim")
    table.add_column("method", no_wrap=True)
    for task in board.tasks:
        table.add_column(Text(visible_line(task.name)), justify="right")
    for row in board.rows:
        table.add_row(*(Text(visible_line(text)) for text in (row.label, *_cells(board, row))))
    return table


def as_markdown(boards: Sequence[Board]) -> str:
    """All boards as markdown."""
    parts = []
    for board in boards:
        parts.append(f"## {markdown(f'{board.title} ({board.protocol})')}\n\n{markdown(board.rule)}")
        parts += [f"> {markdown(note)}" for note in board.notes]
        parts.append(_markdown(headings(board), [line(board, row) for row in board.rows]))
        if len(board.tasks) > 1:
            cells = [[row.label, *_cells(board, row)] for row in board.rows]
            parts.append(_markdown(["method", *(task.name for task in board.tasks)], cells))
    return "\n\n".join(parts) + "\n"


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def joined(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(markdown, cells)) + " |"

    rule = "|" + "|".join("---" if index == 0 else "---:" for index in range(len(heads))) + "|"
    return "\n".join([joined(heads), rule, *(joined(row) for row in rows)])


def as_csv(records: Iterable[RunRecord]) -> str:
    """Every run, final and search, as one line; `methods` with all fields, each score in a column of its name.

    Sizes are bytes, times seconds.
    """
    records = list(records)
    values = list(dict.fromkeys(name for record in records if record.scores for name in record.scores.values))
    costs = list(Costs.model_fields)
    text = io.StringIO()
    heads = ["key", "purpose", "suite", "task", "group", "label", "methods", "seed", "state", "protocol", "departures"]
    heads += ["backbone", "weights", "device", "precision", "lr", "weight_decay", "split", "leading", *values]
    heads += ["count", "legacy_best_on_test", *costs]
    rows: list[list[object]] = []
    for record in records:
        identity = record.identity
        first: list[object] = [record.key, identity.purpose, record.suite, record.task, record.group, record.label]
        first += [text_of(identity.methods), identity.seed]
        first += [record.state.value, identity.protocol, _settings(record), identity.backbone, identity.weights[:12]]
        first += [identity.numerics.device, identity.numerics.precision]
        chosen = [record.chosen.lr, record.chosen.weight_decay] if record.chosen else ["", ""]
        scored: list[object] = [""] * (len(values) + 4)
        if record.scores is not None:
            named = [record.scores.values.get(name, "") for name in values]
            scored = [record.scores.split, record.scores.leading, *named]
            scored += [_value(record.scores, "count"), _value(record.scores, "legacy_best_on_test")]
        numbers = [_value(record.costs, name) for name in costs]
        hardware = record.provenance.hardware if record.provenance else ""
        error = record.error.message if record.error else ""
        rows.append([*first, *chosen, *scored, *numbers, record.finished or "", hardware, error])
    write_csv(text, [*heads, "finished", "hardware", "error"], rows)
    return text.getvalue()


def _settings(record: RunRecord) -> str:
    return " ".join(f"{name}={value}" for name, value in record.departures.items())


def _value(part: RecordedScores | Costs | None, name: str) -> object:
    value = getattr(part, name) if part is not None else None
    return "" if value is None else value
