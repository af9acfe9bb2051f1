"""Samples of several tasks, each from a data set of its own, as one data set; and the order in which they are mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal

from vpeft.batch import Sample, as_sample
from vpeft.errors import VpeftError, nearest

Mixing = Literal["proportional", "temperature", "round_robin"]
MIXINGS: tuple[Mixing, ...] = ("proportional", "temperature", "round_robin")


class NoSamples(VpeftError):
    """A task has no data, or data have no task."""


class TaskMixture:
    """The samples of several tasks, one task behind the other: `mixture[i]` has the target `{task: target}`.

    Args:
        parts: a data set for each task, `len(set)` and `set[i]` -> (input, target).

    Raises:
        NoSamples: a data set is empty.
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        empty = [name for name, part in parts.items() if not len(part)]
        if empty or not parts:
            raise NoSamples(f"The task {empty[0]!r} has no samples." if empty else "There is no task.")
        self.parts = dict(parts)
        self.ranges: dict[str, range] = {}
        first = 0
        for name, part in self.parts.items():
            self.ranges[name] = range(first, first + len(part))
            first += len(part)
        self._count = first

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        place = range(self._count)[index]
        task = next(name for name, span in self.ranges.items() if place in span)
        sample = as_sample(self.parts[task][place - self.ranges[task].start])
        return Sample(sample.input, {task: sample.target}, sample.id)

    def set_epoch(self, epoch: int) -> None:
        """Tell the data sets that seed their own transforms."""
        for part in self.parts.values():
            tell = getattr(part, "set_epoch", None)
            if callable(tell):
                tell(epoch)


def shares(counts: Mapping[str, int], mixing: Mixing, temperature: float) -> dict[str, float]:
    """The share of the batches that each task gets.

    Args:
        counts: samples of each task.
        mixing: "proportional" to them; "temperature", to counts ** (1 / temperature) (Hyperformer, arXiv 2106.04489,
            with 10); "round_robin", each alike.
        temperature: for "temperature".
    """
    power = {"proportional": 1.0, "temperature": 1.0 / temperature, "round_robin": 0.0}
    if mixing not in power:
        raise NoSamples(f"There is no way {mixing!r} to mix tasks. {nearest(mixing, MIXINGS)}")
    raised = {name: count ** power[mixing] for name, count in counts.items()}
    return {name: value / sum(raised.values()) for name, value in raised.items()}


def batches_by_task(share: Mapping[str, float], batches: int, random: Random, *, in_turn: bool) -> list[str]:
    """The task of each batch of an epoch: as many of each as its share says, exactly to one; in turn, or shuffled."""
    exact = {name: value * batches for name, value in share.items()}
    number = {name: int(value) for name, value in exact.items()}
    by_rest = sorted(exact, key=lambda name: (number[name] - exact[name], list(share).index(name)))
    for name in by_rest[: batches - sum(number.values())]:
        number[name] += 1
    if not in_turn:
        order = [name for name, count in number.items() for _ in range(count)]
        random.shuffle(order)
        return order
    return [name for turn in range(max(number.values(), default=0)) for name in share if turn < number[name]]


def mixed_order(
    mixture: TaskMixture, shuffled: Sequence[int], batch: int, mixing: Mixing, temperature: float, seed: int
) -> list[int]:
    """The samples of an epoch, so that each `batch` in a row are of one task; as many as the mixture has.

    Each task goes through its samples in the order of `shuffled`, and begins again where it needs more.
    """
    ranges = mixture.ranges
    own = {name: [index for index in shuffled if index in span] for name, span in ranges.items()}
    share = shares({name: len(span) for name, span in ranges.items()}, mixing, temperature)
    count = len(mixture)
    tasks = batches_by_task(share, -(-count // batch), Random(seed), in_turn=mixing == "round_robin")
    at = dict.fromkeys(ranges, 0)
    order: list[int] = []
    for task in tasks:
        mine = own[task]
        order += [mine[(at[task] + step) % len(mine)] for step in range(batch)]
        at[task] += batch
    return order[:count]
