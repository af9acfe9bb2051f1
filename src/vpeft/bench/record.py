"""The record of one run: what it was, how it ended, what it scored, what it cost, where it was made.

Scores are fractions from 0 to 1, sizes are bytes, times are seconds unless the name says otherwise, instants are UTC in
ISO 8601. `None` means "not measured", never zero.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from vpeft.bench.key import Identity

FORMAT = 1


class State(StrEnum):
    """Where a run stands."""

    planned = "planned"
    running = "running"
    done = "done"
    failed = "failed"
    out_of_memory = "out_of_memory"

    @property
    def finished(self) -> bool:
        return self in (State.done, State.failed, State.out_of_memory)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Failure(_Part):
    """The error that ended a run, kept so that a sweep can go on and a person can look later."""

    kind: str
    message: str
    trace: str = ""


class RecordedScores(_Part):
    """What a trained model scored on one split."""

    split: str
    top1: float
    mean_per_class: float | None = None
    loss: float | None = None
    count: int | None = None
    # The best test score over the epochs, as many published tables have it. It is inflated by selection on the test
    # set, is kept only to show by how much, and nothing reads it to decide anything.
    legacy_best_on_test: float | None = None


class Costs(_Part):
    """What a run cost. Parameters are counts; `saved_bytes` is what one training step keeps for the backward pass."""

    trainable: int | None = None
    trainable_with_head: int | None = None
    backbone_parameters: int | None = None
    reach: str | None = None
    stored_bytes: int | None = None
    saved_bytes: int | None = None
    step_seconds: float | None = None
    steps: int | None = None
    peak_memory_bytes: int | None = None
    wall_seconds: float | None = None


class Chosen(_Part):
    """The hyper-parameters of a final run, and what they were chosen on."""

    lr: float
    weight_decay: float
    rule: str
    searched: tuple[str, ...] = ()
    validation_top1: float | None = None


class Provenance(_Part):
    """Where and with what a run was made."""

    versions: dict[str, str] = {}
    hardware: str = ""
    system: str = ""
    threads: int | None = None


class RunRecord(BaseModel):
    """One run, as it lies in the ledger. The key is checked against the identity, so an edited file is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    key: str
    identity: Identity
    suite: str
    group: str = ""
    label: str
    state: State = State.planned
    attempts: int = 0
    created: str = ""
    started: str | None = None
    finished: str | None = None
    departures: dict[str, Any] = {}
    # The protocol in words, and how many seeds it demands: a ledger is read without the code that made it.
    rule: str = ""
    minimum_seeds: int = 1
    chosen: Chosen | None = None
    scores: RecordedScores | None = None
    costs: Costs | None = None
    history: tuple[dict[str, float], ...] = ()
    error: Failure | None = None
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RunRecord:
        expected = self.identity.key()
        if self.key != expected:
            raise ValueError(f"the key is {self.key}, but the identity in the same record gives {expected}")
        if self.state is State.done and self.scores is None:
            raise ValueError("a run that is done must have scores")
        if self.state in (State.failed, State.out_of_memory) and self.error is None:
            raise ValueError("a run that failed must keep its error")
        return self

    @property
    def task(self) -> str:
        return self.identity.task


def now() -> str:
    """The present instant, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
