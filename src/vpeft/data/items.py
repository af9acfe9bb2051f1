"""One labelled image that has not been decoded yet, and what a source says about all of its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpeft.data.decoding import Stamp, opened_image
from vpeft.data.images import as_image, read, readable, to_rgb
from vpeft.data.pixels import (
    DEFAULT,
    RGB,
    Reading,
    UnreadableImage,
    ValueRange,
    channels_last,
    stored_mask,
    stored_values,
)
from vpeft.data.problems import DataError, Problems

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

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Any:
        """The image as eight-bit RGB, or as `reading` asks, a float tensor (C, H, W); of a clip, a `Clip`.

        `content`, if at hand, saves reading it again. Raises `UnreadableImage`.
        """

    def numbers(self) -> NDArray[np.integer[Any]]:
        """Of a mask: its class numbers (H, W), as they are stored. Raises `UnreadableImage`."""

    def stored(self) -> NDArray[Any]:
        """The values (H, W, C) of the type in which they are stored, as of a depth map. Raises `UnreadableImage`."""


@dataclass(frozen=True, slots=True)
class FilePicture:
    """An image file.

    Attributes:
        file: its path.
        stamp: what the file was when it was checked; another file in its place is refused.
    """

    file: Path
    stamp: Stamp | None = field(default=None, compare=False)

    def content(self) -> bytes:
        with opened_image(self.file, DEFAULT, self.stamp) as file:
            return file.read()

    def stamped(self) -> FilePicture:
        """The picture with the stamp of the file that is there now. Raises `UnreadableImage`."""
        with opened_image(self.file, DEFAULT) as file:
            return replace(self, stamp=Stamp.of(file))

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        return read(content, reading) if content is not None else read(self.file, reading, self.stamp)

    def numbers(self) -> NDArray[np.integer[Any]]:
        return stored_mask(self.file, DEFAULT, self.stamp)

    def stored(self) -> NDArray[Any]:
        with opened_image(self.file, DEFAULT, self.stamp) as file:
            return stored_values(file)


@dataclass(frozen=True, slots=True, eq=False)
class BytesPicture:
    """An image file that is kept in memory, as tables of images keep them."""

    data: bytes
    file: None = None

    def content(self) -> bytes:
        return self.data

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        return read(self.data, reading)

    def numbers(self) -> NDArray[np.integer[Any]]:
        return stored_mask(self.data)

    def stored(self) -> NDArray[Any]:
        return stored_values(self.data)


@dataclass(frozen=True, slots=True, eq=False)
class ArrayPicture:
    """Image number `index` of an array (N, H, W, C) or (N, H, W), which all the images share.

    The array is uint8 of one, three or four channels; of any number type and channels where a `Reading` other than
    plain RGB asks for it.
    """

    array: NDArray[Any]
    index: int
    file: None = None

    def content(self) -> bytes:
        pixels = np.ascontiguousarray(self.array[self.index])
        return str(pixels.shape).encode() + pixels.tobytes()

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        pixels = np.ascontiguousarray(self.array[self.index])
        if reading.plain and pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] in (3, 4)):
            return to_rgb(Image.fromarray(pixels))
        return reading.of_values(pixels[..., None] if pixels.ndim == 2 else pixels)

    def numbers(self) -> NDArray[np.integer[Any]]:
        return class_numbers(self.array[self.index])

    def stored(self) -> NDArray[Any]:
        return channels_last(self.array[self.index])


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

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        value = self._value()
        if isinstance(value, bytes):
            return read(value, reading)
        return as_image(value) if reading.plain else reading.of_values(_values_of(value, reading.channels))

    def numbers(self) -> NDArray[np.integer[Any]]:
        value = self._value()
        return stored_mask(value) if isinstance(value, bytes | Image.Image) else class_numbers(np.asarray(value))

    def stored(self) -> NDArray[Any]:
        value = self._value()
        return stored_values(value) if isinstance(value, bytes) else _values_of(value, 1)


def _values_of(value: Any, channels: int) -> NDArray[Any]:
    """A PIL image, an array (H, W[, C]) or a tensor (C, H, W) as values (H, W, C)."""
    if isinstance(value, Tensor):
        return channels_last(np.moveaxis(value.cpu().numpy(), 0, -1) if value.ndim == 3 else value.cpu().numpy())
    if isinstance(value, np.ndarray):
        return channels_last(value, channels)
    if isinstance(value, Image.Image):
        return stored_values(value)
    raise DataError(f"The data set gives {type(value).__name__} where an image is expected.")


def class_numbers(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """A mask in memory (H, W), (H, W, 1) or (1, H, W) as class numbers (H, W); raises `UnreadableImage`."""
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise UnreadableImage(f"a mask is whole numbers (H, W), not {values.dtype} {values.shape}")
    return values


@dataclass(frozen=True, slots=True)
class Item:
    """One image and what is known of it.

    Attributes:
        name: within the source, a relative path with forward slashes.
        label: the label, or the text by which lists say a target of another kind (`targets.py`).
        picture: where its pixels are.
        target: what `label` says, for other kinds of target than one label: labels, numbers, a `Mask`, `Objects` or a
            `DepthMap`.
        role: in a set for retrieval, whether the image is a query or belongs to the gallery; empty where it is both.
    """

    name: str
    label: str
    picture: Picture
    target: Any = None
    role: Literal["", "query", "gallery"] = ""

    @property
    def where(self) -> str:
        """The file, or else the name: what a message about this image says."""
        return readable(self.picture.file) if self.picture.file is not None else self.name


@dataclass(slots=True)
class Listing:
    """All that a source holds: its own splits, or `whole` when it states none; never both.

    `expected` says what the source reads, for the message that nothing was found. `labels` are the class names in the
    order of their indices where the source states them, None to have them sorted. `stated` are classes that the source
    names though no image may carry them (an empty class folder). `values` is the range of the stored values, where they
    have more than eight bits and the source has turned them into eight by itself.
    """

    expected: str
    splits: dict[SplitName, list[Item]] = field(default_factory=dict)
    whole: list[Item] = field(default_factory=list)
    labels: Sequence[str] | None = None
    stated: Sequence[str] = ()
    problems: Problems = field(default_factory=Problems)
    values: ValueRange | None = None

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
    """Whether `text` is an integer in at most 18 ASCII digits, so that it fits into 64 bits."""
    digits = text.removeprefix("-")
    return len(digits) <= 18 and digits.isascii() and digits.isdigit()


def digest(content: bytes) -> str:
    """The sha256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
