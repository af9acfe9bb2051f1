"""One page for each method and each task: what the boards say of it, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vpeft.bench.record import RunRecord
from vpeft.method_spec import text_of
from vpeft.report import words
from vpeft.report.board import Board, BoardRow, Column
from vpeft.report.rates import searches_of
from vpeft.report.words import Measure


@dataclass(frozen=True)
class OnTask:
    """How one method did on one task.

    Attributes:
        task, group: names.
        score: mean and standard deviation over seeds in words.
        value: the mean, for sorting; None without a run.
        place: rank by the mean among the methods with a run, and how many they are.
        behind: difference to the best mean of the task, in words.
        rates: each searched rate with its validation score in words; the chosen one is `chosen`.
        chosen: the learning rates of the final runs in words.
    """

    task: str
    group: str
    score: str
    value: float | None
    place: tuple[int, int] | None
    behind: str
    rates: tuple[tuple[str, str], ...]
    chosen: str


@dataclass(frozen=True)
class OnBoard:
    """One method on one board: its row, and a line for each task."""

    board: Board
    row: BoardRow
    tasks: tuple[OnTask, ...]


@dataclass(frozen=True)
class MethodPage:
    """All that the ledger holds of one method, under the label and the fields with which it was asked for."""

    anchor: str
    label: str
    fields: str
    boards: tuple[OnBoard, ...]
    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Contender:
    """One method in the table of a task; `anchor` leads to its page."""

    anchor: str
    label: str
    score: str
    value: float
    behind: str
    seeds: str
    chosen: str
    share: int


@dataclass(frozen=True)
class TaskOnBoard:
    """A task's methods on one board, best first."""

    board: Board
    contenders: tuple[Contender, ...]


@dataclass(frozen=True)
class TaskPage:
    """All that the ledger holds of one task."""

    anchor: str
    suite: str
    name: str
    group: str
    boards: tuple[TaskOnBoard, ...]


def anchors(boards: Sequence[Board]) -> dict[str, str]:
    """The id of each method's page, by its label."""
    labels = dict.fromkeys(row.label for board in boards for row in board.rows)
    return {label: f"method-{number}" for number, label in enumerate(sorted(labels))}


def method_pages(boards: Sequence[Board]) -> list[MethodPage]:
    """A page for each label, in their order."""
    found = []
    for label, anchor in anchors(boards).items():
        on = [
            OnBoard(board, row, _on_tasks(board, row)) for board in boards for row in board.rows if row.label == label
        ]
        records = {one.key: one for item in on for one in (*item.row.records, *searches_of(item.board, item.row))}
        found.append(MethodPage(anchor, label, text_of(on[0].row.methods), tuple(on), tuple(records.values())))
    return found


def task_pages(boards: Sequence[Board]) -> list[TaskPage]:
    """A page for each task of each suite."""
    to_method = anchors(boards)
    names = dict.fromkeys((board.suite, task.name, task.group) for board in boards for task in board.tasks)
    found = []
    for number, (suite, name, group) in enumerate(names):
        on = []
        for board in boards:
            for index, task in enumerate(board.tasks):
                if (board.suite, task.name, task.group) == (suite, name, group):
                    on.append(TaskOnBoard(board, _contenders(board, index, to_method)))
        found.append(TaskPage(f"task-{number}", suite, name, group, tuple(on)))
    return found


def _on_tasks(board: Board, row: BoardRow) -> tuple[OnTask, ...]:
    lines = []
    for index, task in enumerate(board.tasks):
        cell, measure = row.cell(index), board.measure
        means = _means(board, index)
        place = None
        if cell is not None:
            place = (1 + sum(measure.sign * mean > measure.sign * cell[0] for mean in means), len(means))
        best = _best(means, measure)
        lines.append(
            OnTask(
                task=task.name,
                group=task.group,
                score=_written(cell, measure),
                value=None if cell is None else cell[0],
                place=place,
                behind=words.DASH if cell is None or best is None else measure.signed(cell[0] - best),
                rates=_rates(board, row, task),
                chosen=_chosen(row, task),
            )
        )
    return tuple(lines)


def _contenders(board: Board, index: int, to_method: dict[str, str]) -> tuple[Contender, ...]:
    measure, means = board.measure, _means(board, index)
    best = _best(means, measure)
    found = []
    for row in board.rows:
        cell = row.cell(index)
        if cell is None or best is None:
            continue
        span = max(means) - min(means)
        above = (cell[0] - min(means)) / span if span > 0 else 1.0
        found.append(
            Contender(
                anchor=to_method[row.label],
                label=row.label,
                score=_written(cell, measure),
                value=cell[0],
                behind=measure.signed(cell[0] - best),
                seeds=", ".join(
                    measure.number(float(score)) for score in row.scores[index] if score == score
                ),  # a NaN is a missing run
                chosen=_chosen(row, board.tasks[index]),
                share=round(100 * (above if measure.higher_is_better else 1 - above)),
            )
        )
    return tuple(sorted(found, key=lambda one: -measure.sign * one.value))


def _means(board: Board, index: int) -> list[float]:
    return [cell[0] for row in board.rows if (cell := row.cell(index)) is not None]


def _best(means: Sequence[float], measure: Measure) -> float | None:
    return max(means, key=lambda mean: measure.sign * mean, default=None)


def _written(cell: tuple[float, float] | None, measure: Measure) -> str:
    return words.DASH if cell is None else f"{measure.number(cell[0])} {measure.spread(cell[1])}".rstrip()


def _rates(board: Board, row: BoardRow, task: Column) -> tuple[tuple[str, str], ...]:
    found = {
        record.chosen.lr: board.measure.number(record.scores.value)
        for record in searches_of(board, row)
        if record.identity.data == task.data and record.scores is not None and record.chosen is not None
    }
    return tuple((f"{rate:g}", found[rate]) for rate in sorted(found))


def _chosen(row: BoardRow, task: Column) -> str:
    rates = {
        f"{record.chosen.lr:g}"
        for record in row.records
        if record.chosen is not None and record.identity.data == task.data
    }
    return ", ".join(sorted(rates)) or words.DASH
