"""Maps in MATLAB files, as PASCAL-Context and PASCAL-Parts keep them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpeft.data.items import FilePicture
from vpeft.data.on_pixels import IGNORED
from vpeft.data.pixels import RGB, Reading, UnreadableImage
from vpeft.guarded import MEBI, read_bytes

# Files of PASCAL-Context have 30 to 100 kB.
LARGEST = 64 * MEBI


def matlab_file(file: Path) -> Mapping[str, Any]:
    """The variables of a file of MATLAB 5 to 7.2. Raises `UnreadableImage`."""
    from scipy.io import loadmat

    content = read_bytes(file, str(file), UnreadableImage, LARGEST)
    try:
        found: Mapping[str, Any] = loadmat(io.BytesIO(content))
    except (ValueError, TypeError, NotImplementedError, KeyError, EOFError, MemoryError, OSError, IndexError) as error:
        raise UnreadableImage(f"{file.name} is no MATLAB file that can be read: {error}") from None
    return found


@dataclass(frozen=True, slots=True)
class LabelMap:
    """The variable `LabelMap` of a file of PASCAL-Context: numbers of 459 classes (H, W)."""

    file: Path

    def content(self) -> bytes:
        return read_bytes(self.file, str(self.file), UnreadableImage, LARGEST)

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        raise UnreadableImage(f"{self.file.name} holds numbers and no picture")

    def numbers(self) -> NDArray[np.integer[Any]]:
        found = matlab_file(self.file).get("LabelMap")
        if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind not in "iu":
            raise UnreadableImage(f"{self.file.name} holds no LabelMap of numbers")
        return found.astype(np.int64)

    def stored(self) -> NDArray[Any]:
        return self.numbers()[..., None]


@dataclass(frozen=True, slots=True)
class LabelEdges(LabelMap):
    """Pixels of such a map that have a neighbour above, below, left or right of another class: 1, and 0 elsewhere.

    The published program thins these lines to one pixel; here they are two pixels wide.
    """

    def numbers(self) -> NDArray[np.integer[Any]]:
        classes = LabelMap.numbers(self)
        found = np.zeros(classes.shape, np.uint8)
        for axis in (0, 1):
            low = [slice(None)] * 2
            high = [slice(None)] * 2
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            differ = classes[tuple(low)] != classes[tuple(high)]
            found[tuple(low)] |= differ
            found[tuple(high)] |= differ
        return found


@dataclass(frozen=True, slots=True)
class NormalsWhere:
    """Stored normals, kept where a label map shows one of some classes; 0 elsewhere.

    Attributes:
        normals: a picture of bytes, (n + 1) / 2 times 255.
        where: the label map.
        classes: the numbers in it at which normals count.
    """

    normals: FilePicture
    where: LabelMap
    classes: frozenset[int]

    @property
    def file(self) -> Path | None:
        return self.normals.file

    def content(self) -> bytes:
        return self.normals.content() + self.where.content()

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        return self.normals.decode(content, reading)

    def numbers(self) -> NDArray[np.integer[Any]]:
        raise UnreadableImage(f"{self.normals.file.name} holds normals and no class numbers")

    def stored(self) -> NDArray[Any]:
        raw = self.normals.stored()
        if raw.dtype != np.uint8 or raw.shape[-1] < 3:
            raise UnreadableImage(f"{self.normals.file.name} is no picture of eight bits with three channels")
        vectors = 2.0 * raw[..., :3].astype(np.float32) / 255.0 - 1.0
        labels = self.where.numbers()
        if labels.shape != vectors.shape[:2]:
            raise UnreadableImage(f"{self.where.file.name} is {labels.shape}, and the normals are {vectors.shape[:2]}")
        kept: NDArray[Any] = np.where(np.isin(labels, list(self.classes))[..., None], vectors, 0.0)
        return kept


@dataclass(frozen=True, slots=True)
class PeopleParts:
    """The parts of people in a file of PASCAL-Parts, as class numbers; 255 everywhere where there are no people.

    Attributes:
        file: with the variable `anno`.
        image: whose size the map has where the file shows nobody.
        parts: the class of each part by its name.
        person: the number of the category of people.
    """

    file: Path
    image: Path
    parts: tuple[tuple[str, int], ...]
    person: int

    def content(self) -> bytes:
        return read_bytes(self.file, str(self.file), UnreadableImage, LARGEST) + repr(self.parts).encode()

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        raise UnreadableImage(f"{self.file.name} holds masks and no picture")

    def numbers(self) -> NDArray[np.integer[Any]]:
        known, found = dict(self.parts), None
        try:
            for one in matlab_file(self.file)["anno"][0][0][1][0]:
                if int(one[1][0][0]) != self.person or not len(one[3]):
                    continue
                if found is None:
                    found = np.zeros(one[2].shape, np.int64)
                for part in one[3][0]:
                    found[part[1].astype(bool)] = known[str(part[0][0])]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UnreadableImage(f"{self.file.name} is no file of PASCAL-Parts: {error!r}") from None
        if found is not None:
            return found
        with Image.open(self.image) as picture:
            return np.full((picture.height, picture.width), IGNORED, np.int64)

    def stored(self) -> NDArray[Any]:
        return self.numbers()[..., None]
