"""The record of one run: what it was, how it ended, what it scored, what it cost, where it was made.

A record knows its task through named values alone, one of which leads. Shares are fractions of 1, sizes are
bytes, times are seconds unless the name says otherwise, instants are UTC in ISO 8601. `None`, or no such
name, means "not measured", never zero; NaN and infinity stand in no record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, field_validator, model_validator

from vpeft.bench.key import Identity

# Format 1 knew classification alone: its scores had the fields top1, mean_per_class and loss. It is read for ever.
FORMAT = 2
READABLE = (1, FORMAT)
_OF_FORMAT_1 = ("top1", "mean_per_class", "loss")


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


def _finite(values: Any) -> Any:
    """Without what was not measured: a metric without a value is NaN, for instance the recall of an absent class."""
    if not isinstance(values, Mapping):
        return values
    return {name: one for name, one in values.items() if one is not None and one not in (inf, -inf) and one == one}


class Failure(_Part):
    """The error that ended a run, kept so that a sweep can go on and a person can look later."""

    kind: str
    message: str
    trace: str = ""

    @field_validator("kind", "message", "trace", mode="before")
    @classmethod
    def _as_utf8_says(cls, text: Any) -> Any:
        # A file name that is not UTF-8 stands in a message as halves of surrogate pairs, which no file can hold.
        return text.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(text, str) else text


class RecordedScores(_Part):
    """What a trained model scored on one split: values by name, of which `leading` is what runs are compared by."""

    split: str
    values: dict[str, FiniteFloat]
    leading: str
    higher_is_better: bool = True
    count: int | None = None
    # The leading value of the best epoch on the test split, as many published tables have it. It is inflated by
    # selection on the test set, is kept only to show by how much, and nothing reads it to decide anything.
    legacy_best_on_test: FiniteFloat | None = None

    @field_validator("values", mode="before")
    @classmethod
    def _measured(cls, given: Any) -> Any:
        return _finite(given)

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, given: Any) -> Any:
        leading = _OF_FORMAT_1[0]
        if not isinstance(given, dict) or "values" in given or leading not in given:
            return given
        rest = {name: value for name, value in given.items() if name not in _OF_FORMAT_1}
        values = {name: given[name] for name in _OF_FORMAT_1 if given.get(name) is not None}
        return {**rest, "values": values, "leading": leading, "higher_is_better": True}

    @model_validator(mode="after")
    def _has_what_leads(self) -> RecordedScores:
        if self.leading not in self.values:
            raise ValueError(f"the leading value {self.leading!r} is not among the values: {', '.join(self.values)}")
        return self

    @property
    def value(self) -> float:
        """The leading value."""
        return self.values[self.leading]

    @property
    def sign(self) -> int:
        """1 where a higher leading value is better, else -1: times this, higher is always better."""
        return 1 if self.higher_is_better else -1

    def sentence(self) -> str:
        """The leading value with its name, in per cent where it is a share: "top-1 87.1 %", "mae 0.1234"."""
        share = self.higher_is_better and 0.0 <= self.value <= 1.0
        return f"{title_of(self.leading)} " + (f"{100 * self.value:.1f} %" if share else f"{self.value:.4g}")


def title_of(metric: str) -> str:
    """The name of a metric as people write it: `top1` is "top-1", `mean_per_class` is "mean per class"."""
    return re.sub(r"(?<=[a-z]{2})(?=\d)", "-", metric.replace("_", " "))


class Costs(_Part):
    """What a run cost. Parameters are counts; `saved_bytes` is what one training step keeps for the backward pass."""

    trainable: int | None = None
    trainable_with_head: int | None = None
    backbone_parameters: int | None = None
    reach: str | None = None
    stored_bytes: int | None = None
    saved_bytes: int | None = None
    step_seconds: FiniteFloat | None = None
    steps: int | None = None
    peak_memory_bytes: int | None = None
    wall_seconds: FiniteFloat | None = None


class Chosen(_Part):
    """The hyper-parameters of a final run, and what they were chosen on."""

    lr: FiniteFloat
    weight_decay: FiniteFloat
    rule: str
    searched: tuple[str, ...] = ()
    # The leading value on the validation split of the point that was chosen.
    validation: FiniteFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, given: Any) -> Any:
        old = f"validation_{_OF_FORMAT_1[0]}"
        if not isinstance(given, dict) or old not in given:
            return given
        return {**{name: value for name, value in given.items() if name != old}, "validation": given[old]}


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
    history: tuple[dict[str, FiniteFloat], ...] = ()
    error: Failure | None = None
    provenance: Provenance | None = None

    @field_validator("history", mode="before")
    @classmethod
    def _measured(cls, given: Any) -> Any:
        return [_finite(epoch) for epoch in given] if isinstance(given, (list, tuple)) else given

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, given: Any) -> Any:
        # The parts read their own old form; what is written from here on is the new one.
        return {**given, "format": FORMAT} if isinstance(given, dict) and given.get("format") == 1 else given

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
