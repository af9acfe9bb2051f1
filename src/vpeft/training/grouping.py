"""Find the runs that read the same images in the same way, so that one pass over the images serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.task import Task

_SHOWN = 3  # differences in a sentence


@dataclass(frozen=True)
class DataReading:
    """The data that a run reads; `run` is the run's name."""

    run: str
    config: DataConfig
    preprocessing: Preprocessing
    task: Task

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that is equal for runs that read the same samples in the same way. Loading processes do not matter."""
        return _alike(self.config), self.preprocessing, type(self.task), *self.task.reads_alike


class Opened:
    """Opens data sets for several runs; runs that read the same images get the same objects."""

    def __init__(self) -> None:
        self._plain: dict[DataConfig, Datasets] = {}
        self._prepared: dict[tuple[DataConfig, Preprocessing, tuple[Any, ...]], Datasets] = {}

    def __call__(self, config: DataConfig, preprocessing: Preprocessing, task: Task) -> Datasets:
        alike = _alike(config)
        if alike not in self._plain:
            self._plain[alike] = open_data(config)
        key = alike, preprocessing, task.reads_alike
        if key not in self._prepared:
            self._prepared[key] = self._plain[alike].prepared(preprocessing, task)
        return self._prepared[key]


def passes(readings: Sequence[DataReading]) -> list[list[int]]:
    """Return the positions of the runs by pass, in the order of `readings`."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for number, reading in enumerate(readings):
        found.setdefault(reading.key, []).append(number)
    return list(found.values())


def said(readings: Sequence[DataReading], grouped: Sequence[Sequence[int]]) -> list[str]:
    """Return lines that say which runs share a pass, and how a pass differs from the closest earlier one."""
    if len(grouped) == 1:
        return [f"{len(readings)} runs in one pass: {_names(readings, grouped[0])}"]
    lines = [f"{len(readings)} runs in {len(grouped)} passes, one after the other"]
    for number, group in enumerate(grouped):
        line = f"pass {number + 1}: {_names(readings, group)}"
        if number:
            here = readings[group[0]]
            before = [(list(_differences(readings[other[0]], here)), other) for other in grouped[:number]]
            why, closest = min(before, key=lambda one: len(one[0]))
            rest = f"; and {len(why) - _SHOWN} more" if len(why) > _SHOWN else ""
            line += f" (not with {_names(readings, closest)}: {'; '.join(why[:_SHOWN])}{rest})"
        lines.append(line)
    return lines


def _alike(config: DataConfig) -> DataConfig:
    return config.model_copy(update={"workers": 0})


def _names(readings: Sequence[DataReading], group: Sequence[int]) -> str:
    return ", ".join(readings[number].run for number in group)


def _differences(there: DataReading, here: DataReading) -> Iterator[str]:
    """Say how the reading `here` differs."""
    pairs: tuple[tuple[str, BaseModel, BaseModel], ...] = (
        ("data", _alike(there.config), _alike(here.config)),
        ("preprocessing", there.preprocessing, here.preprocessing),
    )
    if there.task.name != here.task.name:
        yield f"the task is {here.task.name} here and {there.task.name} there"
    for name, old, new in pairs:
        for field in type(old).model_fields:
            before, now = getattr(old, field), getattr(new, field)
            if before != now:
                yield f"{name}.{field} is {_shown(now)} here and {_shown(before)} there"


def _shown(value: object) -> str:
    return "not set" if value is None else repr(value)
