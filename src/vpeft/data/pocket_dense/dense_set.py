"""What an offline set for dense prediction is, and how its pictures are made, kept and checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vpeft.atomic import replace_file
from vpeft.data.problems import DataError
from vpeft.errors import VpeftError

SIDE = 128
VERSION = 1  # raised when a picture or target of a released set changes; results of two versions are not comparable
SEED = 20_260_416  # of the sets; one number, so that everybody has the same pictures
SIZES = {"train": 400, "val": 200, "test": 400}
DIGESTS = Path(__file__).with_name("digests.json")
# In `DensePictures.classes`: there is no object of this number.
ABSENT = 255


class SeenObject(NamedTuple):
    """One object of a picture.

    Attributes:
        number: in `DensePictures.instances`.
        label: its class number among `DenseSet.object_labels`.
        box: x0, y0, x1, y1 in pixels.
        mask: its visible pixels (H, W).
    """

    number: int
    label: int
    box: tuple[int, int, int, int]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class DensePictures:
    """The pictures of one split with all that is known of each pixel.

    Attributes:
        images: uint8 (N, 128, 128, 3), RGB.
        mask: uint8 (N, 128, 128), the number of each pixel's class among `DenseSet.mask_labels`.
        instances: uint8 (N, 128, 128), which object is seen at a pixel: k for object k - 1, 0 for none. None where the
            set has no objects.
        classes: uint8 (N, M), the number of each object's class among `DenseSet.object_labels`; `ABSENT` fills up.
        depth: uint16 (N, 128, 128), the distance of what is seen along the camera's axis, in millimetres.
    """

    images: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    instances: NDArray[np.uint8] | None = None
    classes: NDArray[np.uint8] | None = None
    depth: NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that there are, by name."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def objects(self, index: int) -> list[SeenObject]:
        """The objects of picture `index`: each with the tightest box around its visible mask."""
        if self.instances is None or self.classes is None:
            return []
        seen = self.instances[index]
        found = []
        for number, label in enumerate(self.classes[index].tolist(), 1):
            if label == ABSENT:
                continue
            mask = seen == number
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            found.append(SeenObject(number, label, box, mask))
        return found


@dataclass(frozen=True)
class DenseSet:
    """One set: `draw(split, count, rng)` makes `count` pictures; all else describes it.

    `draw` must be a pure function of its arguments and must use only `rng.random`, `rng.integers` and
    `rng.permutation`, whose streams do not depend on the version of NumPy.
    """

    name: str
    title: str
    description: str
    mask_labels: tuple[str, ...]
    object_labels: tuple[str, ...]
    source: str
    licence: str
    draw: Callable[[str, int, np.random.Generator], DensePictures] = field(repr=False)
    has_depth: bool = False
    needs: tuple[str, ...] = ()  # import names of packages beyond vpeft's own dependencies

    def load(self, split: str) -> DensePictures:
        """The pictures of "train" (400), "val" (200) or "test" (400).

        The first call makes the arrays and keeps them below `$VPEFT_CACHE` or `~/.cache/vpeft`; the digest stored with
        the set is part of the file's name.

        Raises:
            DataError: a package is missing, or `split` is unknown.
        """
        if split not in SIZES:
            raise DataError(f"The set pocket-dense/{self.name} has no split {split!r}; it has {', '.join(SIZES)}.")
        stored = stored_digests().get(self.name, {}).get(split)
        if stored is None:  # a set in the making: nothing to key a cache with
            return self.generate(split)
        path = _cache_folder() / "pocket-dense" / f"{self.name}-{split}-v{VERSION}-{stored[:16]}.npz"
        if path.exists():
            try:
                with np.load(io.BytesIO(path.read_bytes())) as held:
                    return DensePictures(**{name: held[name] for name in held.files})
            except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
                path.unlink(missing_ok=True)  # truncated or not ours: make it again
        pictures = self.generate(split)
        if digest(pictures) == stored:
            # A folder that cannot be written costs the time of making the pictures again, nothing else.
            with suppress(OSError, VpeftError):
                replace_file(path, lambda part: _write(part, pictures))
        return pictures

    def splits(self) -> dict[str, DensePictures]:
        """All three splits, as `load` gives them."""
        return {split: self.load(split) for split in SIZES}

    def generate(self, split: str) -> DensePictures:
        """Make one split anew, past the cache."""
        absent = [package for package in self.needs if find_spec(package) is None]
        if absent:
            raise DataError(
                f"The set pocket-dense/{self.name} needs {' and '.join(absent)}, not installed here: "
                'pip install "vpeft[bench]"'
            )
        key = [SEED, VERSION, list(SIZES).index(split), *self.name.encode()]
        return self.draw(split, SIZES[split], np.random.Generator(np.random.PCG64(key)))

    def verify(self) -> None:
        """Make every split anew and compare it with the stored sha256; raises `DataError` that names the split."""
        for split in SIZES:
            stored, found = stored_digests().get(self.name, {}).get(split), digest(self.generate(split))
            if found != stored:
                raise DataError(
                    f"The split {split!r} of pocket-dense/{self.name} is not the one that the results were made with "
                    f"(sha256 {found[:12]}, stored {str(stored)[:12]}). A package it is made from has another version?"
                )


def digest(pictures: DensePictures) -> str:
    """sha256 over the names, shapes and contents of all arrays."""
    found = hashlib.sha256()
    for name, array in pictures.arrays().items():
        found.update(repr((name, array.shape, array.dtype.itemsize)).encode())
        found.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


@cache
def stored_digests() -> dict[str, dict[str, str]]:
    """Set -> split -> sha256, as shipped."""
    if not DIGESTS.exists():
        return {}
    content: dict[str, dict[str, str]] = json.loads(DIGESTS.read_text())
    return content


def _cache_folder() -> Path:
    return Path(os.environ.get("VPEFT_CACHE") or Path.home() / ".cache" / "vpeft")


def _write(path: Path, pictures: DensePictures) -> None:
    with path.open("wb") as file:
        arrays: dict[str, Any] = pictures.arrays()
        np.savez(file, **arrays)
