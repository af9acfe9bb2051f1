"""What a task of the offline suite is, and how its arrays are made, kept and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vpeft.data.drawn_splits import kept_arrays, random_of_split, read_digests, require_digest, require_packages
from vpeft.data.problems import DataError

Images = NDArray[np.uint8]  # (N, 64, 64, 3), RGB
Labels = NDArray[np.int64]  # (N,)
Group = Literal["natural", "specialised", "structured"]

SIDE = 64
VERSION = 1  # raised when a picture or label of a released suite changes; results of two versions are not comparable
SEED = 20_150_412  # of the suite; one number, so that everybody has the same pictures
SIZES = {"train": 800, "val": 200, "test": 1200}
DIGESTS = Path(__file__).with_name("digests.json")


@dataclass(frozen=True)
class PocketTask:
    """One task: `draw(split, count, rng)` makes `count` pictures and labels; all else describes it.

    `draw` must be a pure function of its arguments and must use only `rng.random`, `rng.integers` and
    `rng.permutation`, whose streams do not depend on the version of NumPy.
    """

    name: str
    group: Group
    title: str
    description: str
    labels: tuple[str, ...]
    source: str
    licence: str
    draw: Callable[[str, int, np.random.Generator], tuple[Images, Labels]] = field(repr=False)
    needs: tuple[str, ...] = ()  # import names of packages beyond vpeft's own dependencies

    def load(self, split: str) -> tuple[Images, Labels]:
        """Images (N, 64, 64, 3) uint8 and labels (N,) int64 of "train" (800), "val" (200) or "test" (1200).

        The first call makes the arrays and keeps them below `$VPEFT_CACHE` or `~/.cache/vpeft`; the digest stored with
        the suite is part of the file's name. Raises `DataError` when a package is missing or `split` is unknown.
        """
        if split not in SIZES:
            raise DataError(f"The task pocket/{self.name} has no split {split!r}; it has {', '.join(SIZES)}.")
        stored = stored_digests().get(self.name, {}).get(split)
        if stored is None:  # a task in the making: nothing to key a cache with
            return self.generate(split)
        found = kept_arrays(
            f"pocket/{self.name}-{split}-v{VERSION}",
            stored,
            lambda: dict(zip(("images", "labels"), self.generate(split), strict=True)),
            lambda arrays: digest(arrays["images"], arrays["labels"]),
        )
        return found["images"], found["labels"]

    def splits(self) -> dict[str, tuple[Images, Labels]]:
        """All three splits, as `load` gives them."""
        return {split: self.load(split) for split in SIZES}

    def generate(self, split: str) -> tuple[Images, Labels]:
        """Make one split anew, past the cache."""
        require_packages(self.needs, f"The task pocket/{self.name}")
        rng = random_of_split(SEED, VERSION, list(SIZES).index(split), self.name)
        images, labels = self.draw(split, SIZES[split], rng)
        return np.ascontiguousarray(images, dtype=np.uint8), np.ascontiguousarray(labels, dtype=np.int64)

    def verify(self) -> None:
        """Make every split anew and compare it with the stored sha256; raises `DataError` that names the split."""
        for split in SIZES:
            found = digest(*self.generate(split))
            require_digest(f"pocket/{self.name}", split, found, stored_digests().get(self.name, {}).get(split))


def digest(images: Images, labels: Labels) -> str:
    """sha256 over shapes, pixels and labels."""
    found = hashlib.sha256(repr((images.shape, labels.shape)).encode())
    found.update(np.ascontiguousarray(images).tobytes())
    found.update(np.ascontiguousarray(labels.astype("<i8")).tobytes())
    return found.hexdigest()


@cache
def stored_digests() -> dict[str, dict[str, str]]:
    """Task -> split -> sha256, as shipped."""
    return read_digests(DIGESTS)
