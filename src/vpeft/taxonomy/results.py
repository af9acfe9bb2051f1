"""What methods scored where, and how good that is among the methods that were measured beside them.

Tables of this package's own benchmark are stored in `results.json` (written by `tools/method_pages.py`); those of any
ledger can take their place. Scores of two tables are never compared: a standing is a rank within one table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

STORED = Path(__file__).with_name("results.json")
GOOD = 3
"""good is the upper one of this many parts of a table"""


class ScoreTable(BaseModel):
    """Scores that may be compared: one protocol, one backbone, one metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: str
    higher_is_better: bool
    tasks: dict[str, str]
    """each task and its group"""
    scores: dict[str, dict[str, float]]
    """method with default settings -> task -> mean score over the seeds"""

    def tasks_of(self, name: str) -> tuple[str, ...]:
        """The tasks that a name means: one task, or all of a group; empty for any other name."""
        return (name,) if name in self.tasks else tuple(task for task, group in self.tasks.items() if group == name)

    def means(self, name: str) -> dict[str, float]:
        """The mean score over the tasks that a name means, of the methods that have all of them, best first."""
        tasks = self.tasks_of(name)
        found = {
            method: sum(scores[task] for task in tasks) / len(tasks)
            for method, scores in self.scores.items()
            if tasks and all(task in scores for task in tasks)
        }
        return dict(sorted(found.items(), key=lambda item: (-item[1] if self.higher_is_better else item[1], item[0])))


class Results(BaseModel):
    """Tables of scores and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = ""
    tables: tuple[ScoreTable, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The groups, then the tasks."""
        groups = [group for table in self.tables for group in table.tasks.values()]
        return tuple(dict.fromkeys([*groups, *(task for table in self.tables for task in table.tasks)]))

    def standing(self, method: str, name: str) -> Standing | None:
        """How a method does on a task or group, in the table with the most of its tasks; None if it is in none."""
        tables = [(table, table.means(name)) for table in self.tables]
        mine = [(table, means) for table, means in tables if method in means]
        if not mine:
            return None
        table, means = max(mine, key=lambda pair: (len(pair[0].tasks_of(name)), len(pair[1])))
        rank = list(means).index(method) + 1
        return Standing(name, table.protocol, means[method], rank, len(means))


@dataclass(frozen=True)
class Standing:
    """One method on one task or group.

    Attributes:
        name: of the task or group.
        protocol: by which it was measured.
        score: mean over the tasks.
        rank: 1 is the best.
        among: number of methods in that table.
    """

    name: str
    protocol: str
    score: float
    rank: int
    among: int

    @property
    def good(self) -> bool:
        """Whether it is in the upper third of its table."""
        return self.rank <= math.ceil(self.among / GOOD)

    def __str__(self) -> str:
        value = f"{100 * self.score:.1f} %" if 0 <= self.score <= 1 else f"{self.score:.4g}"
        return f"{value}, {self.rank} of {self.among} ({self.protocol})"


@cache
def stored_results() -> Results:
    """The tables that ship with the package; none where the file is missing."""
    return Results.model_validate_json(STORED.read_text(encoding="utf-8")) if STORED.exists() else Results()
