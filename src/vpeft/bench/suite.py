"""Suites: named lists of tasks, each with a training, a validation and a sealed test split, in tiers of effort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vpeft.bench.key import canonical
from vpeft.bench.sealed import SealedTest
from vpeft.bench.splits import Split, SplitArrays
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.errors import VpeftError, nearest
from vpeft.task import DEFAULT, Task, get_task


class UnknownSuite(VpeftError):
    """No suite has this name."""


class UnknownTask(VpeftError):
    """The suite has no task, or no tier, of this name."""


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
    """How much of a suite is run: the tasks (all when empty), under which protocol, with how many seeds."""

    protocol: str
    seeds: int
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """A list of tasks. `groups` maps each task to its group, in the order in which tables show them.

    `open` makes one task by its name; it is the only member that touches data.
    """

    name: str
    title: str
    about: str
    groups: Mapping[str, str]
    tiers: Mapping[str, Tier]
    default_tier: str
    open: Callable[[str], BenchTask]

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

    def task(self, name: str) -> BenchTask:
        """The task of this name, with its data. Raises UnknownTask."""
        name = name.removeprefix(f"{self.name}/")
        if name not in self.groups:
            raise UnknownTask(f"The suite {self.name} has no task {name!r}. {nearest(name, self.groups)}")
        return self.open(name)
