"""Suites: named lists of tasks, each with a training, a validation and a sealed test split, in tiers of effort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from vpeft.bench.key import canonical
from vpeft.bench.sealed import SealedTest
from vpeft.bench.splits import Split, SplitArrays
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.set_facts import SetFacts
from vpeft.errors import VpeftError, nearest
from vpeft.task import DEFAULT, Task, get_task


class UnknownSuite(VpeftError):
    """No suite has this name."""


class UnknownTask(VpeftError):
    """The suite has no task, or no tier, of this name."""


class NoDataFolder(VpeftError):
    """A suite of files was not told their folder, or a suite that needs none was."""


@dataclass(frozen=True)
class DataFolder:
    """Where the files of a suite are.

    Attributes:
        root: the folder.
        exact: whether the numbers of images and classes must be the published ones. A tier for a first look takes less.
    """

    root: Path
    exact: bool = True


@dataclass(frozen=True)
class BenchTask:
    """One task of a suite: its data, and what is learnt from them.

    Attributes:
        digest: the sha256 of all that is fixed here: pixels, targets, class names, in their order; with `learns` and
            `image_size` where these are not the defaults.
        learns: the task with its options (a head, a loss); one class for each image unless the suite says otherwise.
        image_size: (H, W) that images are brought to; None takes the size that the backbone states.
        clip: of a task on clips, which frames a model sees; None for images.
    """

    suite: str
    name: str
    group: str
    labels: tuple[str, ...]
    train: Split
    val: Split
    test: SealedTest
    digest: str
    learns: Task = field(default_factory=lambda: get_task(DEFAULT)())
    image_size: tuple[int, int] | None = None
    clip: ClipConfig | None = None

    @property
    def full_name(self) -> str:
        return f"{self.suite}/{self.name}"

    def train_and_val(self) -> Split:
        """Both splits on which a chosen configuration is refitted, training images first."""
        return self.train.joined(self.val)


def make_task(
    suite: str, name: str, group: str, labels: tuple[str, ...], train: SplitArrays, val: SplitArrays, test: SplitArrays
) -> BenchTask:
    """A task of three splits in memory; the test split is sealed here.

    Raises ValueError for pixels that are not uint8 (N, H, W, 3), labels that are not one per image or out of range,
    or an empty split.
    """
    checksum = hashlib.sha256(canonical({"suite": suite, "name": name, "labels": labels}).encode())
    for split, images in (("train", train), ("val", val), ("test", test)):
        pixels, numbers = images
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(
                f"{suite}/{name} {split}: pixels are uint8 (N, H, W, 3), not {pixels.dtype} {pixels.shape}"
            )
        if len(pixels) != len(numbers) or not len(pixels):
            raise ValueError(f"{suite}/{name} {split}: {len(pixels)} images with {len(numbers)} labels")
        if numbers.min() < 0 or numbers.max() >= len(labels):
            raise ValueError(
                f"{suite}/{name} {split}: labels go from {numbers.min()} to {numbers.max()}, not 0 to K - 1"
            )
        # Little-endian, so that the digest is the same on every machine.
        checksum.update(f"{split} {pixels.shape}".encode())
        checksum.update(np.ascontiguousarray(pixels).tobytes())
        checksum.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    sealed = SealedTest(f"{suite}/{name}", lambda: test)
    return BenchTask(suite, name, group, labels, train, val, sealed, checksum.hexdigest())


@dataclass(frozen=True)
class Tier:
    """How much of a suite is run: the tasks (all when empty), under which protocol, with how many seeds.

    `exact` compares the files of a suite with the published numbers; without it any part of the data will do, and the
    scores are comparable with nothing.
    """

    protocol: str
    seeds: int
    tasks: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Suite:
    """A list of tasks, and what is known of them. `groups` maps each task to its group, in the order of tables.

    Attributes:
        open: makes one task by its name; it touches data. Of suites that need no files of the user.
        open_in: makes one task of files in a folder. Of the others.
        tasks_in: of a suite whose tasks are what is in the folder: each with its group.
        layout: what the folder holds, in words.
        version: raised when a task of the suite changes; its results are then not comparable with older ones.
        metric: the value that leads on all tasks; empty where each task has its own, which `BenchTask.learns` says.
        higher_is_better: the direction of `metric`.
        licence: of the images; of suites with facts, each task has its own.
        facts: published numbers by task.
    """

    name: str
    title: str
    about: str
    groups: Mapping[str, str]
    tiers: Mapping[str, Tier]
    default_tier: str
    open: Callable[[str], BenchTask] | None = None
    open_in: Callable[[str, DataFolder], BenchTask] | None = None
    tasks_in: Callable[[Path], Mapping[str, str]] | None = None
    layout: str = ""
    version: int = 1
    metric: str = "top1"
    higher_is_better: bool = True
    licence: str = ""
    facts: Mapping[str, SetFacts] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.groups)

    def tier(self, name: str | None) -> Tier:
        """The tier of this name, or the default one. Raises UnknownTask."""
        name = name or self.default_tier
        try:
            return self.tiers[name]
        except KeyError:
            raise UnknownTask(f"The suite {self.name} has no tier {name!r}. {nearest(name, self.tiers)}") from None

    def at(self, data: DataFolder | None) -> Self:
        """The suite with the tasks that are in a folder, where these are what is there; else the suite itself.

        Raises:
            NoDataFolder: the suite reads files and no folder is named, or it reads none and one is.
        """
        if (self.open_in is None) != (data is None):
            raise NoDataFolder(
                f"The suite {self.name} reads files: name their folder with --root. It holds {self.layout}."
                if data is None
                else f"The suite {self.name} reads no files of yours: leave out --root."
            )
        if data is not None and not data.root.expanduser().is_dir():
            raise NoDataFolder(f"There is no folder {data.root}. The suite {self.name} expects {self.layout}.")
        return self if self.tasks_in is None or data is None else replace(self, groups=self.tasks_in(data.root))

    def task(self, name: str, data: DataFolder | None = None) -> BenchTask:
        """The task of this name, with its data. Raises UnknownTask, NoDataFolder."""
        name = name.removeprefix(f"{self.name}/")
        known = self.at(data)
        if name not in known.groups:
            raise UnknownTask(f"The suite {self.name} has no task {name!r}. {nearest(name, known.groups)}")
        if known.open_in is not None and data is not None:
            return known.open_in(name, replace(data, root=data.root.expanduser()))
        assert known.open is not None, "a suite opens its tasks in one way or the other"
        return known.open(name)
