"""What a score can be set against: a cost of a method, and how its values are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vpeft.report import words
from vpeft.report.board import BoardRow


@dataclass(frozen=True)
class Cost:
    """A cost of a method; less is better.

    Attributes:
        name: in ids of the page.
        title: in a sentence.
        axis: below a picture.
        of: gives the value of a row, None if it was not measured.
        written: writes a value.
    """

    name: str
    title: str
    axis: str
    of: Callable[[BoardRow], float | None]
    written: Callable[[float], str]


PARAMETERS = Cost(
    "parameters",
    "trained parameters",
    "trained parameters, head not counted",
    lambda row: row.costs.trainable,
    lambda value: words.count(round(value)),
)
COSTS = (
    PARAMETERS,
    Cost(
        "memory",
        "memory of a step",
        "bytes that a training step keeps for its backward pass",
        lambda row: row.costs.saved_bytes,
        lambda value: words.size(round(value)),
    ),
    Cost("time", "time of a step", "time of a training step", lambda row: row.costs.step_seconds, words.seconds),
    Cost(
        "computing",
        "computing for a result",
        "computing for one result: the search of a task and one final run",
        lambda row: row.computing,
        words.seconds,
    ),
)
