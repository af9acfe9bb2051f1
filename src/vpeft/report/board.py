"""Boards: the records of a ledger, put into tables that may be read across.

Runs stand on one board if and only if they may be compared: same suite, protocol, backbone with the same weights, same
numerics, same departures from the protocol, same leading metric. A board never adds up what is incomplete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, mode
from typing import Any

import numpy as np

from vpeft.bench.key import canonical
from vpeft.bench.ppt import ppt
from vpeft.bench.record import Costs, RunRecord, State
from vpeft.bench.statistics import (
    Array,
    Interval,
    mean_and_std,
    mean_ranks,
    paired_bootstrap,
    std_of_total,
    tie_groups,
    total,
)
from vpeft.method_spec import MethodSpec
from vpeft.report.words import Measure

# A percentile bootstrap of fewer cells is far narrower than it says (three seeds of one task: an interval that covers
# about three times in four instead of nineteen in twenty), so none is given.
ENOUGH_CELLS = 8


@dataclass(frozen=True)
class Column:
    """A task with its group and the digest of its data."""

    name: str
    group: str
    data: str


@dataclass(frozen=True)
class BoardRow:
    """One method, or one set of methods, on one board. What needs all of its runs is None while some are missing.

    `scores` is (tasks, seeds) of the leading metric, NaN where a run is missing. Costs are medians over the runs;
    the number of trained parameters is without the head. `behind` is the paired difference to the best row, with
    its `interval` and the group `tie` only where there are enough cells for them. `computing` is the median over tasks
    of the seconds for one result: the search of the task and one final run.
    """

    label: str
    methods: tuple[MethodSpec, ...]
    records: tuple[RunRecord, ...]
    scores: Array
    holes: tuple[str, ...]
    costs: Costs
    mean: float | None = None
    std: float | None = None
    group_means: dict[str, float] = field(default_factory=dict)
    ppt: float | None = None
    rank: float | None = None
    tie: int | None = None
    behind: float | None = None
    interval: Interval | None = None
    computing: float | None = None

    @property
    def complete(self) -> bool:
        return not self.holes

    @property
    def failures(self) -> list[RunRecord]:
        return [record for record in self.records if record.state in (State.failed, State.out_of_memory)]

    @property
    def inflation(self) -> float | None:
        """By how much the best test score over epochs is better than the honest one, on average; None: not recorded."""
        gaps = [
            record.scores.sign * (record.scores.legacy_best_on_test - record.scores.value)
            for record in self.records
            if record.scores is not None and record.scores.legacy_best_on_test is not None
        ]
        return float(np.mean(gaps)) if gaps else None

    def cell(self, task: int) -> tuple[float, float] | None:
        """Mean and standard deviation over the seeds that are there; None if none is."""
        there = self.scores[task][~np.isnan(self.scores[task])]
        return mean_and_std(there) if there.size else None


@dataclass(frozen=True)
class Board:
    """Runs that may be compared with each other, by the metric `measure`, and the searches that they rest on."""

    measure: Measure
    suite: str
    protocol: str
    rule: str
    backbone: str
    weights: str
    numerics: str
    departures: dict[str, Any]
    minimum_seeds: int
    tasks: tuple[Column, ...]
    groups: dict[str, tuple[int, ...]]
    seeds: tuple[int, ...]
    rows: tuple[BoardRow, ...]
    records: tuple[RunRecord, ...]
    searches: tuple[RunRecord, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.suite} · {self.backbone}"

    @property
    def best(self) -> BoardRow | None:
        """The complete row with the best mean."""
        return next((row for row in self.rows if row.complete), None)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before reading a number."""
        found = []
        if self.departures:
            settings = ", ".join(f"{name} = {value}" for name, value in self.departures.items())
            found.append(f"Departs from {self.protocol}: {settings}. Not comparable with runs that do not.")
        if len(self.seeds) < self.minimum_seeds:
            found.append(f"{len(self.seeds)} of the {self.minimum_seeds} seeds that {self.protocol} demands.")
        holes = {row.label: len(row.holes) for row in self.rows if row.holes}
        if holes:
            listed = ", ".join(f"{label} ({count})" for label, count in holes.items())
            found.append(f"Runs are missing, and no mean is given without them: {listed}.")
        return found


def boards(records: Iterable[RunRecord]) -> list[Board]:
    """The boards of all final runs, by suite and backbone; the largest first."""
    shelves: dict[str, list[RunRecord]] = {}
    searches: dict[str, RunRecord] = {}
    for record in records:
        if record.identity.purpose == "final":
            shelves.setdefault(_shelf(record), []).append(record)
        else:
            searches[record.key] = record
    found = [
        _board(measured, measure, searches) for shelf in shelves.values() for measure, measured in _by_metric(shelf)
    ]
    return sorted(found, key=_order)


def _order(board: Board) -> tuple[str, str, bool, int, str]:
    """By suite and backbone; the boards with most tasks and seeds first."""
    size = len(board.tasks) * len(board.seeds)
    return board.suite, board.backbone, bool(board.departures), -size, board.protocol


def _shelf(record: RunRecord) -> str:
    identity = record.identity
    return canonical(
        {
            "suite": record.suite,
            "protocol": identity.protocol,
            "backbone": identity.backbone,
            "weights": identity.weights,
            "numerics": identity.numerics.model_dump(),
            "departures": record.departures,
        }
    )


def _by_metric(records: Sequence[RunRecord]) -> list[tuple[Measure, list[RunRecord]]]:
    """Records by their leading metric. One without scores goes to the metric of its task, or to the most frequent."""
    metrics = {record.key: (one.leading, one.higher_is_better) for record in records if (one := record.scores)}
    by_task: dict[tuple[str, str], Counter[tuple[str, bool]]] = {}
    for record in records:
        if record.key in metrics:
            by_task.setdefault(_task(record), Counter())[metrics[record.key]] += 1
    everywhere = Counter(metrics.values()) or Counter([("", True)])
    found: dict[tuple[str, bool], list[RunRecord]] = {}
    for record in records:
        likely = by_task.get(_task(record), everywhere).most_common(1)[0][0]
        found.setdefault(metrics.get(record.key, likely), []).append(record)
    return [(_measure(name, higher, of_metric), of_metric) for (name, higher), of_metric in found.items()]


def _task(record: RunRecord) -> tuple[str, str]:
    return record.task, record.identity.data


def _measure(name: str, higher_is_better: bool, records: Sequence[RunRecord]) -> Measure:
    values = [record.scores.value for record in records if record.scores is not None]
    return Measure(name, higher_is_better, share=higher_is_better and all(0.0 <= value <= 1.0 for value in values))


def _board(records: Sequence[RunRecord], measure: Measure, searches: Mapping[str, RunRecord]) -> Board:
    tasks = _tasks(records)
    seeds = tuple(sorted({record.identity.seed for record in records}))
    groups: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        groups.setdefault(task.group, []).append(index)
    by_methods: dict[str, list[RunRecord]] = {}
    for record in records:
        methods = [method.model_dump() for method in record.identity.methods]
        by_methods.setdefault(canonical(methods), []).append(record)
    rows = [_row(found, tasks, seeds, groups, measure, searches) for found in by_methods.values()]
    behind = {key for record in records if record.chosen is not None for key in record.chosen.searched}
    first = records[0]
    return Board(
        measure=measure,
        suite=first.suite,
        protocol=first.identity.protocol,
        rule=first.rule,
        backbone=first.identity.backbone,
        weights=first.identity.weights,
        numerics=f"{first.identity.numerics.precision} on {first.identity.numerics.device}",
        departures=first.departures,
        minimum_seeds=max(record.minimum_seeds for record in records),
        tasks=tasks,
        groups={group: tuple(indices) for group, indices in groups.items()},
        seeds=seeds,
        rows=_compared(_told_apart(rows), measure),
        records=tuple(records),
        searches=tuple(searches[key] for key in sorted(behind & searches.keys())),
    )


def _tasks(records: Sequence[RunRecord]) -> tuple[Column, ...]:
    """The columns in the order of their groups. A task whose data changed is two columns, never one."""
    found = {(record.group, record.task.split("/", 1)[-1], record.identity.data) for record in records}
    return tuple(Column(name, group, data) for group, name, data in sorted(found))


def _row(
    records: Sequence[RunRecord],
    tasks: Sequence[Column],
    seeds: Sequence[int],
    groups: Mapping[str, Sequence[int]],
    measure: Measure,
    searches: Mapping[str, RunRecord],
) -> BoardRow:
    scores = np.full((len(tasks), len(seeds)), np.nan)
    at = {(task.name, task.data): index for index, task in enumerate(tasks)}
    for record in records:
        if record.scores is not None:
            task = at[record.task.split("/", 1)[-1], record.identity.data]
            scores[task, seeds.index(record.identity.seed)] = record.scores.value
    names = [task.name for task in tasks]
    costs = _costs(records)
    row = BoardRow(
        label=records[0].label,
        methods=records[0].identity.methods,
        records=tuple(records),
        scores=scores,
        holes=tuple(f"{names[int(task)]} seed {seeds[int(seed)]}" for task, seed in np.argwhere(np.isnan(scores))),
        costs=costs,
        computing=_computing(records, searches),
    )
    if not row.complete:
        return row
    mean = total(scores, names, row.label)
    return replace(
        row,
        mean=mean,
        std=std_of_total(scores),
        group_means={group: float(scores[list(members)].mean()) for group, members in groups.items()},
        # PPT is defined for shares alone.
        ppt=ppt(mean, costs.trainable) if measure.share and costs.trainable is not None else None,
    )


def _computing(records: Sequence[RunRecord], searches: Mapping[str, RunRecord]) -> float | None:
    """The median over tasks of the seconds of the search and one final run; None where any of them is not known."""
    finals: dict[tuple[str, str], list[float | None]] = {}
    behind: dict[tuple[str, str], dict[str, float | None]] = {}
    for record in records:
        finals.setdefault(_task(record), []).append(_seconds(record))
        found = behind.setdefault(_task(record), {})
        if record.chosen is not None:
            found.update({key: _seconds(searches.get(key)) for key in record.chosen.searched})
    known: dict[tuple[str, str], float] = {}
    for task, spent in finals.items():
        values = [value for value in (*spent, *behind[task].values()) if value is not None]
        if len(values) < len(spent) + len(behind[task]):
            return None
        known[task] = median(values[: len(spent)]) + sum(values[len(spent) :])
    return median(known.values())


def _seconds(record: RunRecord | None) -> float | None:
    return None if record is None or record.costs is None else record.costs.wall_seconds


def _costs(records: Sequence[RunRecord]) -> Costs:
    """The median of each cost over the runs that have it; of words the most frequent."""
    found = [record.costs for record in records if record.costs is not None]
    values: dict[str, Any] = {}
    for name in Costs.model_fields:
        seen = [value for costs in found if (value := getattr(costs, name)) is not None]
        if not seen:
            continue
        if isinstance(seen[0], str):
            values[name] = mode(seen)
        else:
            middle = median(seen)
            values[name] = round(middle) if isinstance(seen[0], int) else middle
    return Costs(**values)


def _told_apart(rows: Sequence[BoardRow]) -> list[BoardRow]:
    """Rows under different labels: two with the same one differ in fields that nobody typed (a default changed)."""
    count = Counter(row.label for row in rows)
    return [
        replace(row, label=f"{row.label} [{row.records[0].key[:4]}]") if count[row.label] > 1 else row for row in rows
    ]


def _compared(rows: Sequence[BoardRow], measure: Measure) -> tuple[BoardRow, ...]:
    """Rows from best to worst, incomplete ones last; the complete ones ranked and compared with the best."""
    complete = sorted((row for row in rows if row.complete), key=lambda row: -measure.sign * float(row.mean or 0.0))
    rest = sorted((row for row in rows if not row.complete), key=lambda row: row.label)
    if len(complete) < 2:
        return (*complete, *rest)
    table = {row.label: row.scores for row in complete}
    ranks = mean_ranks(table, higher_is_better=measure.higher_is_better)
    best = complete[0]
    enough = best.scores.size >= ENOUGH_CELLS
    ties = tie_groups(table, higher_is_better=measure.higher_is_better) if enough else {}
    compared = [
        replace(
            row,
            rank=ranks[row.label],
            tie=ties.get(row.label),
            behind=float((row.scores - best.scores).mean()) if row is not best else None,
            interval=paired_bootstrap(row.scores, best.scores) if enough and row is not best else None,
        )
        for row in complete
    ]
    return (*compared, *rest)
