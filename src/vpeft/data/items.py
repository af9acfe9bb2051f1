"""One labelled image that has not been decoded yet, and what a source says about all of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpeft.data.images import as_image, read_image, to_rgb
from vpeft.data.problems import Problems

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

# What data sets call their splits.
_SPLIT_WORDS: Mapping[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_of(word: str) -> SplitName | None:
    """The split that `word` means ("validation" means val), or None."""
    return _SPLIT_WORDS.get(word.strip().lower())


class Picture(Protocol):
    """Where the pixels of an image are. Instances are pickled to data-loading workers."""

    @property
    def file(self) -> Path | None:
        """The image's own file, where it has one."""

    def content(self) -> bytes:
        """The bytes that identify the image: of its file, or of its pixels where there is no file."""

    def decode(self, content: bytes | None = None) -> Image.Image:
        """The image as RGB with eight bits; `content`, if at hand, saves reading it again. Raises `UnreadableImage`."""


@dataclass(frozen=True, slots=True)
class FilePicture:
    """An image file."""

    file: Path

    def content(self) -> bytes:
        return self.file.read_bytes()

    def decode(self, content: bytes | None = None) -> Image.Image:
        return read_image(self.file if content is None else content)


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPicture:
    """Image number `index` of an array (N, H, W, 3) or (N, H, W) of uint8, which all the images share."""

    array: NDArray[np.uint8]
    index: int
    file: None = None

    def content(self) -> bytes:
        pixels = np.ascontiguousarray(self.array[self.index])
        return str(pixels.shape).encode() + pixels.tobytes()

    def decode(self, content: bytes | None = None) -> Image.Image:
        return to_rgb(Image.fromarray(np.ascontiguousarray(self.array[self.index])))


@dataclass(frozen=True, slots=True, eq=False)
class SamplePicture:
    """Image `index` of a map-style data set of somebody else's: `dataset[index][key]`.

    The image may be a PIL image, an array (H, W[, C]) or tensor (C, H, W), the bytes of a file, or a dictionary of
    `bytes` and `path` (Hugging Face, undecoded).
    """

    dataset: Any
    index: int
    key: int | str = 0
    file: None = None

    def _value(self) -> Any:
        value = self.dataset[self.index][self.key]
        if isinstance(value, Mapping):
            data, path = value.get("bytes"), value.get("path")
            return data if data is not None else Path(str(path)).read_bytes()
        return value

    def content(self) -> bytes:
        value = self._value()
        if isinstance(value, bytes):
            return value
        pixels = np.asarray(as_image(value))
        return str(pixels.shape).encode() + pixels.tobytes()

    def decode(self, content: bytes | None = None) -> Image.Image:
        return as_image(self._value())


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image: its `name` within the source (a relative path with forward slashes), its label and pixels."""

    name: str
    label: str
    picture: Picture

    @property
    def where(self) -> str:
        """The file, or else the name: what a message about this image says."""
        return str(self.picture.file) if self.picture.file is not None else self.name


@dataclass(slots=True)
class Listing:
    """All that a source holds: its own splits, or `whole` when it states none; never both.

    `expected` says what the source reads, for the message that nothing was found. `labels` are the class names in the
    order of their indices where the source states them, None to have them sorted. `stated` are classes that the source
    names though no image may carry them (an empty class folder).
    """

    expected: str
    splits: dict[SplitName, list[Item]] = field(default_factory=dict)
    whole: list[Item] = field(default_factory=list)
    labels: Sequence[str] | None = None
    stated: Sequence[str] = ()
    problems: Problems = field(default_factory=Problems)

    def add(self, split: SplitName | None, item: Item) -> None:
        """Put `item` into a split, or into the whole."""
        (self.whole if split is None else self.splits.setdefault(split, [])).append(item)


def in_order(labels: Sequence[str] | set[str]) -> list[str]:
    """Labels without repeats: by value when all are whole numbers (so that 10 follows 9), else by name."""
    unique = set(labels)
    if all(is_whole_number(label) for label in unique):
        return sorted(unique, key=lambda label: (int(label), label))
    return sorted(unique)


def is_whole_number(text: str) -> bool:
    """Whether `text` is an integer in ASCII digits."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def digest(content: bytes) -> str:
    """The sha256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
