"""What an offline set for dense prediction is, and how its pictures are made, kept and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vpeft.data.drawn_splits import kept_arrays, random_of_split, read_digests, require_digest, require_packages
from vpeft.data.problems import DataError

SIDE = 128
VERSION = 1  # of a set that states no other
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
    # Makes the normals of the surfaces, int8 (N, 128, 128, 3), of the pictures that `draw` makes of equal arguments.
    draw_normals: Callable[[str, int, np.random.Generator], NDArray[np.int8]] | None = field(default=None, repr=False)
    needs: tuple[str, ...] = ()  # import names of packages beyond vpeft's own dependencies
    # Raised when a picture or target of a released set changes; results of two versions are not comparable.
    version: int = VERSION

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
        found = kept_arrays(
            f"pocket-dense/{self.name}-{split}-v{self.version}",
            stored,
            lambda: self.generate(split).arrays(),
            lambda arrays: digest(DensePictures(**arrays)),
        )
        return DensePictures(**found)

    def normals(self, split: str) -> NDArray[np.int8]:
        """The normals (N, 128, 128, 3) of the pictures of a split, times 127; made and kept as by `load`.

        Raises:
            DataError: the set has none, or `split` is unknown.
        """
        if self.draw_normals is None or split not in SIZES:
            raise DataError(f"The set pocket-dense/{self.name} has no normals of a split {split!r}.")
        name = f"{self.name}-normals"
        stored = stored_digests().get(name, {}).get(split)
        if stored is None:
            return self.generate_normals(split)
        found: NDArray[np.int8] = kept_arrays(
            f"pocket-dense/{name}-{split}-v{self.version}",
            stored,
            lambda: {"normals": self.generate_normals(split)},
            lambda arrays: digest_of(arrays),
        )["normals"]
        return found

    def generate_normals(self, split: str) -> NDArray[np.int8]:
        """Make the normals of one split anew, past the cache."""
        assert self.draw_normals is not None  # `normals` looks first
        rng = random_of_split(SEED, self.version, list(SIZES).index(split), self.name)
        return self.draw_normals(split, SIZES[split], rng)

    def splits(self) -> dict[str, DensePictures]:
        """All three splits, as `load` gives them."""
        return {split: self.load(split) for split in SIZES}

    def generate(self, split: str) -> DensePictures:
        """Make one split anew, past the cache."""
        require_packages(self.needs, f"The set pocket-dense/{self.name}")
        rng = random_of_split(SEED, self.version, list(SIZES).index(split), self.name)
        return self.draw(split, SIZES[split], rng)

    def verify(self) -> None:
        """Make every split anew and compare it with the stored sha256; raises `DataError` that names the split."""
        for split in SIZES:
            found = digest(self.generate(split))
            require_digest(f"pocket-dense/{self.name}", split, found, stored_digests().get(self.name, {}).get(split))


def digest(pictures: DensePictures) -> str:
    """sha256 over the names, shapes and contents of all arrays."""
    return digest_of(pictures.arrays())


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over the names, shapes and contents of arrays."""
    found = hashlib.sha256()
    for name, array in arrays.items():
        found.update(repr((name, array.shape, array.dtype.itemsize)).encode())
        found.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return found.hexdigest()


@cache
def stored_digests() -> dict[str, dict[str, str]]:
    """Set -> split -> sha256, as shipped."""
    return read_digests(DIGESTS)
