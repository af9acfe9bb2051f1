"""What records say about methods and learning rates: validation scores and seconds of each on each task.

The table that ships with the package is made from results/pocket by tools/experience.py. It is small (a score and a
time for each task, method and learning rate), so that `vpeft auto` needs neither the ledger nor its images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from statistics import fmean
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from vpeft.bench.record import RunRecord, State
from vpeft.errors import VpeftError
from vpeft.guarded import MEBI, parse_json
from vpeft.method_spec import text_of

SHIPPED = "experience_pocket.json"
_MOST_BYTES = 8 * MEBI
# Settings of a protocol that a rate belongs to, and that a user's recipe can take over.
_CARRIED = ("batch", "warmup", "schedule", "min_lr", "clip")


class BadExperience(VpeftError):
    """Records from which nothing can be chosen, or a table of them that cannot be read."""


class Candidate(BaseModel):
    """A method with all its fields, as text; its label; and the learning rate and decay to train it with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    method: str
    lr: float
    weight_decay: float

    def words(self) -> str:
        """Return the label with the learning rate."""
        return f"{self.label} at {self.lr:g}"


class Experience(BaseModel):
    """Scores of candidates on tasks, all of the same runs otherwise.

    Attributes:
        source: where the records are from, in words.
        backbone, epochs, settings: of all runs.
        tasks: names; `probes` holds what cheap probes of the frozen features say of each, by name of the probe.
        candidates: what was tried on every task.
        scores: (task, candidate) -> the leading metric on validation images, higher is better.
        seconds: (task, candidate) -> seconds of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    backbone: str
    epochs: int
    settings: dict[str, Any] = {}
    tasks: tuple[str, ...]
    probes: tuple[dict[str, float], ...] = ()
    candidates: tuple[Candidate, ...]
    scores: tuple[tuple[float, ...], ...]
    seconds: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for table in (self.scores, self.seconds):
            if len(table) != len(self.tasks) or any(len(row) != len(self.candidates) for row in table):
                raise ValueError("scores and seconds have one row for each task and one value for each candidate")
        if self.probes and len(self.probes) != len(self.tasks):
            raise ValueError("each task has its probes, or none has")
        return self

    @property
    def behind(self) -> NDArray[np.float64]:
        """(task, candidate): how much the score is below that of the task's best candidate; 0 or less."""
        scores = np.array(self.scores)
        found: NDArray[np.float64] = scores - scores.max(axis=1, keepdims=True)
        return found

    def relative_costs(self) -> list[float]:
        """Of each candidate the mean over tasks of its seconds, in units of the mean over candidates."""
        means = [fmean(row[index] for row in self.seconds) for index in range(len(self.candidates))]
        middle = fmean(means)
        return [mean / middle for mean in means]

    def without(self, task: str) -> Experience:
        """The same without one task."""
        kept = [index for index, name in enumerate(self.tasks) if name != task]
        return self.model_copy(
            update={
                "tasks": tuple(self.tasks[index] for index in kept),
                "probes": tuple(self.probes[index] for index in kept) if self.probes else (),
                "scores": tuple(self.scores[index] for index in kept),
                "seconds": tuple(self.seconds[index] for index in kept),
            }
        )


def experience_of(
    records: Iterable[RunRecord],
    protocol: str,
    backbone: str,
    *,
    probes: Mapping[str, Mapping[str, float]] | None = None,
) -> Experience:
    """The search runs of one protocol on one backbone, of every candidate that was tried on all of their tasks.

    Args:
        records: of a ledger.
        protocol, backbone: whose runs are taken.
        probes: of the tasks, by their names.

    Raises:
        BadExperience: there are no such runs, or no candidate with all tasks.
    """
    found: dict[Candidate, dict[str, RunRecord]] = {}
    for record in records:
        identity = record.identity
        if (identity.purpose, identity.protocol, identity.backbone) != ("search", protocol, backbone):
            continue
        if record.state is not State.done or record.scores is None or record.chosen is None or record.departures:
            continue
        made = Candidate(
            label=record.label,
            method=text_of(identity.methods),
            lr=record.chosen.lr,
            weight_decay=record.chosen.weight_decay,
        )
        found.setdefault(made, {})[record.task.split("/", 1)[-1]] = record
    tasks = sorted({task for of_task in found.values() for task in of_task})
    whole = sorted(
        (one for one, of_task in found.items() if len(of_task) == len(tasks)), key=lambda one: (one.label, one.lr)
    )
    if not whole or len(tasks) < 2:
        raise BadExperience(
            f"There are no search runs of {protocol} on {backbone} with all their tasks, and at least two are needed."
            " Make some: vpeft bench --suite pocket --tier full --methods lora,ssf --out LEDGER"
        )
    some = found[whole[0]][tasks[0]].identity.optimisation
    return Experience(
        source=f"{len(whole) * len(tasks)} search runs of {protocol} on {backbone}",
        backbone=backbone,
        epochs=int(some["epochs"]),
        settings={name: some[name] for name in _CARRIED if some.get(name) is not None},
        tasks=tuple(tasks),
        probes=tuple(dict(probes[task]) for task in tasks) if probes is not None else (),
        candidates=tuple(whole),
        scores=tuple(tuple(_score(found[one][task]) for one in whole) for task in tasks),
        seconds=tuple(tuple(_seconds(found[one][task]) for one in whole) for task in tasks),
    )


def _score(record: RunRecord) -> float:
    assert record.scores is not None
    return record.scores.sign * record.scores.value


def _seconds(record: RunRecord) -> float:
    known = record.costs.wall_seconds if record.costs is not None else None
    if known is None:
        raise BadExperience(f"The run {record.key} does not say how long it took.")
    return known


def shipped() -> Experience:
    """The experience that comes with the package."""
    data = files("vpeft.assets").joinpath(SHIPPED).read_bytes()
    return Experience.model_validate(parse_json(data, SHIPPED, BadExperience))
