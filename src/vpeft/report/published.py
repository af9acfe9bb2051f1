"""Tables from the literature: imported as *reported*, with their source, and never mixed with what was measured here.

A table is a CSV (`Method`, one column per task, `Mean`, `Params.`, `PPT`, scores in percent) with a JSON file of the
same name that states where it is from, by which protocol it was made, what is doubtful about it, the groups of its
tasks and which of its rows is which method here.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vpeft.bench.ppt import ppt
from vpeft.errors import VpeftError, nearest
from vpeft.guarded import MEBI, parse_json, read_bytes, short, text_of

_COUNT = re.compile(r"(\d{1,15}(?:\.\d{0,15})?|\.\d{1,15})\s*([KMB]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
_MOST_BYTES = 16 * MEBI
_FEW = 5  # tasks of a table whose scores are named one by one
_OTHER_COLUMNS = ("Method", "Mean", "Params.", "PPT")


class BadTable(VpeftError):
    """A published table that cannot be read."""


class Source(BaseModel):
    """Where a table is from and what it means. Without it a table is not read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    source: str
    protocol: str
    score: str
    caveats: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] = {}
    names: dict[str, str] = {}


@dataclass(frozen=True)
class ReportedRow:
    """One row. Scores and mean are fractions; `parameters` as rounded by the table; `printed_ppt` None for a dash."""

    method: str
    scores: Mapping[str, float]
    printed_mean: float | None
    parameters: int | None
    printed_ppt: float | None

    @property
    def mean(self) -> float:
        """The plain mean of the row's scores."""
        return sum(self.scores.values()) / len(self.scores)

    @property
    def ppt(self) -> float | None:
        """PPT recomputed from the mean and the printed number of parameters."""
        return None if self.parameters is None else ppt(self.mean, self.parameters)

    def slips(self) -> list[str]:
        """Where the printed mean or PPT is not what the printed scores and parameters give."""
        found = []
        # Half a unit of the last printed digit, and a hair for the binary form.
        if self.printed_mean is not None and abs(self.printed_mean - self.mean) > 0.5e-4 + 1e-9:
            found.append(f"mean printed {100 * self.printed_mean:.2f}, computed {100 * self.mean:.2f}")
        if self.printed_ppt is not None and self.ppt is not None and abs(self.printed_ppt - self.ppt) > 0.5e-2 + 1e-9:
            found.append(f"PPT printed {self.printed_ppt:.2f}, computed {self.ppt:.4f}")
        return found


@dataclass(frozen=True)
class PublishedTable:
    """A table from the literature."""

    name: str
    about: Source
    tasks: tuple[str, ...]
    rows: tuple[ReportedRow, ...]

    def means(self) -> dict[str, float]:
        """The mean by the name that the method has in vpeft, for the rows that have one."""
        by_row = {row.method: row.mean for row in self.rows}
        return {ours: by_row[theirs] for ours, theirs in self.about.names.items()}

    def group_means(self, row: ReportedRow) -> dict[str, float]:
        """The means over the groups of tasks."""
        return {
            group: sum(row.scores[task] for task in tasks) / len(tasks) for group, tasks in self.about.groups.items()
        }


@dataclass(frozen=True)
class ReportedFigure:
    """What one published table says of one method; scores are fractions.

    Attributes:
        table: its title.
        scores: each task's score where there are few, otherwise the mean over all and over each group of tasks.
        parameters: as printed, None where the table has none.
        source, protocol, caveats: the table's.
    """

    table: str
    scores: Mapping[str, float]
    parameters: int | None
    source: str
    protocol: str
    caveats: tuple[str, ...]


def figures_of(method: str) -> list[ReportedFigure]:
    """What the shipped tables say of the method that is called so here, in the order of the tables' names."""
    found = []
    for table in map(published, names()):
        row = next((row for row in table.rows if row.method == table.about.names.get(method)), None)
        if row is not None:
            groups = table.group_means(row)
            scores = {f"mean of {len(row.scores)}": row.mean, **groups} if len(row.scores) > _FEW else dict(row.scores)
            about = table.about
            found.append(
                ReportedFigure(about.title, scores, row.parameters, about.source, about.protocol, about.caveats)
            )
    return found


def names() -> list[str]:
    """The tables that come with vpeft."""
    return sorted(item.name.removesuffix(".csv") for item in _shipped().iterdir() if item.name.endswith(".csv"))


def published(name: str | Path) -> PublishedTable:
    """A table by its name, or from a CSV file with its JSON beside it. Raises BadTable."""
    path = Path(name)
    if path.suffix == ".csv":
        return _read(path.stem, path, path.with_suffix(".json"))
    if str(name) not in names():
        raise BadTable(f"There is no published table {str(name)!r}. {nearest(str(name), names())} Or give a CSV file.")
    return _read(str(name), _shipped() / f"{name}.csv", _shipped() / f"{name}.json")


def _shipped() -> Traversable:
    return files("vpeft.report") / "published"


def _read(name: str, table: Traversable | Path, about: Traversable | Path) -> PublishedTable:
    if not table.is_file():
        raise BadTable(f"There is no table {table}.")
    if not about.is_file():
        raise BadTable(
            f"{table} has no {name}.json beside it. A published table needs its title, source, protocol and score, "
            "stated in that file."
        )
    try:
        source = Source.model_validate(parse_json(_text(about), str(about), BadTable))
    except ValidationError as error:
        raise BadTable(f"{about} does not describe a table: {error}") from error
    try:
        found = list(csv.DictReader(_text(table).splitlines()))
    except csv.Error as error:
        raise BadTable(f"{table} is no CSV: {error}.") from None
    if not found or "Method" not in found[0]:
        raise BadTable(f"{table} has no rows with a column Method.")
    if any(None in line or None in line.values() for line in found):  # which is what the reader makes of other lengths
        raise BadTable(f"{table} has rows that are shorter or longer than its first line.")
    tasks = tuple(column for column in found[0] if column not in _OTHER_COLUMNS)
    if not tasks or not all(source.groups.values()):
        raise BadTable(f"{table} has no column for a task, or {about} a group without tasks.")
    rows = tuple(_row(line, tasks, str(table)) for line in found)
    methods, columns = {row.method for row in rows}, set(tasks)
    strange = set(source.names.values()) - methods
    strange |= {task for group in source.groups.values() for task in group} - columns
    if strange:
        raise BadTable(f"{about} speaks of {', '.join(sorted(strange))}, which {table} does not have.")
    return PublishedTable(name, source, tasks, rows)


def _text(file: Traversable | Path) -> str:
    data = read_bytes(file, str(file), BadTable, _MOST_BYTES) if isinstance(file, Path) else file.read_bytes()
    return text_of(data, str(file), BadTable)


def _row(line: Mapping[str, str], tasks: tuple[str, ...], table: str) -> ReportedRow:
    method = line["Method"]

    def number(text: str | None) -> float | None:
        if text is None or text.strip() in ("", "-"):
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadTable(f"{table}, {method}: {short(text)} is not a number.")
        return value

    scores = {}
    for task in tasks:
        score = number(line[task])
        if score is None or not 0 <= score <= 100:
            raise BadTable(f"{table}, {method}, {task}: {line[task]!r} is not a score from 0 to 100.")
        scores[task] = score / 100
    mean = number(line.get("Mean"))
    return ReportedRow(
        method=method,
        scores=scores,
        printed_mean=None if mean is None else mean / 100,
        parameters=_count(line.get("Params."), f"{table}, {method}"),
        printed_ppt=number(line.get("PPT")),
    )


def _count(text: str | None, where: str) -> int | None:
    if text is None or text.strip() in ("", "-"):
        return None
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise BadTable(f"{where}: {short(text)} is not a number of parameters such as 0.29M.")
    return round(float(match[1]) * _UNITS[match[2].upper()])
