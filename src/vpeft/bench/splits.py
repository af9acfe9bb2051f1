"""A split of a task in memory: images with their targets, which training and evaluation read as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vpeft.data.config import TargetName
from vpeft.data.image_set import ArraySet, ImageSet
from vpeft.data.items import Item

Transform = Callable[..., Any]


class Split(Protocol):
    """One split of a task."""

    @property
    def size(self) -> int:
        """How many images it has."""
        ...

    @property
    def content(self) -> bytes | None:
        """What tells this split from others of the same task; None where it cannot be compared cheaply."""
        ...

    def dataset(self, labels: Sequence[str], transform: Transform | None, seed: int) -> ImageSet:
        """The images and targets as a data set; `seed` is that of the augmentation."""
        ...

    def joined(self, other: Any) -> Self:
        """This split and then another of the same kind."""
        ...


class SplitArrays(NamedTuple):
    """Images with one class each: pixels uint8 (N, H, W, 3) and labels int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    # A tuple's own length is 2, so the number of images has a name of its own.
    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def content(self) -> bytes | None:
        return str(self.pixels.shape).encode() + self.pixels.tobytes() + self.labels.tobytes()

    def dataset(self, labels: Sequence[str], transform: Transform | None, seed: int) -> ImageSet:
        return ArraySet(self.pixels, self.labels, list(labels), transform=transform, seed=seed)

    def joined(self, other: SplitArrays) -> SplitArrays:
        return SplitArrays(np.concatenate([self.pixels, other.pixels]), np.concatenate([self.labels, other.labels]))


@dataclass(frozen=True)
class SplitItems:
    """Images with targets of any kind (objects, masks, depth), as the sources of vpeft.data give them.

    Attributes:
        digest: the sha256 of all images and targets where it is known, by which runs share images as tensors.
    """

    items: tuple[Item, ...]
    target: TargetName
    digest: str = ""

    @property
    def size(self) -> int:
        return len(self.items)

    @property
    def content(self) -> bytes | None:
        return self.digest.encode() or None

    def dataset(self, labels: Sequence[str], transform: Transform | None, seed: int) -> ImageSet:
        return ImageSet(self.items, list(labels), transform=transform, seed=seed, target=self.target)

    def joined(self, other: SplitItems) -> SplitItems:
        digest = hashlib.sha256((self.digest + other.digest).encode()).hexdigest() if self.digest else ""
        return SplitItems((*self.items, *other.items), self.target, digest)
