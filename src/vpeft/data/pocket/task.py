"""What a task of the offline suite is, and how its arrays are made, kept and checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

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
        path = _cache_folder() / "pocket" / f"{self.name}-{split}-v{VERSION}-{stored[:16]}.npz"
        if path.exists():
            try:
                with np.load(io.BytesIO(path.read_bytes())) as held:
                    return held["images"], held["labels"]
            except (OSError, ValueError, KeyError, EOFError, BadZipFile):
                path.unlink(missing_ok=True)  # truncated or not ours: make it again
        images, labels = self.generate(split)
        if digest(images, labels) == stored:
            _write(path, images, labels)
        return images, labels

    def splits(self) -> dict[str, tuple[Images, Labels]]:
        """All three splits, as `load` gives them."""
        return {split: self.load(split) for split in SIZES}

    def generate(self, split: str) -> tuple[Images, Labels]:
        """Make one split anew, past the cache."""
        absent = [package for package in self.needs if find_spec(package) is None]
        if absent:
            raise DataError(
                f"The task pocket/{self.name} needs {' and '.join(absent)}, not installed here: "
                'pip install "vpeft[bench]"'
            )
        key = [SEED, VERSION, list(SIZES).index(split), *self.name.encode()]
        images, labels = self.draw(split, SIZES[split], np.random.Generator(np.random.PCG64(key)))
        return np.ascontiguousarray(images, dtype=np.uint8), np.ascontiguousarray(labels, dtype=np.int64)

    def verify(self) -> None:
        """Make every split anew and compare it with the stored sha256; raises `DataError` that names the split."""
        for split in SIZES:
            stored, found = stored_digests().get(self.name, {}).get(split), digest(*self.generate(split))
            if found != stored:
                raise DataError(
                    f"The split {split!r} of pocket/{self.name} is not the one that the suite's results were made with "
                    f"(sha256 {found[:12]}, stored {str(stored)[:12]}). A package it is made from has another version?"
                )


def digest(images: Images, labels: Labels) -> str:
    """sha256 over shapes, pixels and labels."""
    found = hashlib.sha256(repr((images.shape, labels.shape)).encode())
    found.update(np.ascontiguousarray(images).tobytes())
    found.update(np.ascontiguousarray(labels.astype("<i8")).tobytes())
    return found.hexdigest()


@cache
def stored_digests() -> dict[str, dict[str, str]]:
    """Task -> split -> sha256, as shipped."""
    if not DIGESTS.exists():
        return {}
    content: dict[str, dict[str, str]] = json.loads(DIGESTS.read_text())
    return content


def _cache_folder() -> Path:
    return Path(os.environ.get("VPEFT_CACHE") or Path.home() / ".cache" / "vpeft")


def _write(path: Path, images: Images, labels: Labels) -> None:
    """Atomic; a folder that cannot be written costs the time of making the arrays again, nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            np.savez(part, images=images, labels=labels)
        Path(part.name).replace(path)
    except OSError:
        return
