"""Masks whose stored numbers or colours stand for other class numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpeft.data.items import Picture
from vpeft.data.pixels import RGB, Reading, UnreadableImage

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class RenumberedMask:
    """A mask whose number n stands for class `classes[n]`; numbers beyond it stay as they are, so that they are seen.

    Attributes:
        picture: of the stored numbers.
        classes: the class of each stored number.
    """

    picture: Picture
    classes: tuple[int, ...]

    @property
    def file(self) -> Path | None:
        return self.picture.file

    def content(self) -> bytes:
        return self.picture.content() + repr(self.classes).encode()

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        image: Image.Image | Tensor = self.picture.decode(None, reading)
        return image

    def numbers(self) -> NDArray[np.integer[Any]]:
        stored = self.picture.numbers().astype(np.int64)
        table = np.asarray(self.classes, np.int64)
        known = (stored >= 0) & (stored < len(table))
        return np.where(known, table[np.where(known, stored, 0)], stored)

    def stored(self) -> NDArray[Any]:
        return self.picture.stored()


@dataclass(frozen=True, slots=True)
class ColouredMask:
    """A mask in colours, of which the n-th stands for class n; a mask in numbers stays as it is.

    Attributes:
        picture: of the colours.
        colours: red, green and blue of each class.
        ignored: colours of pixels that do not count.
    """

    picture: Picture
    colours: tuple[Colour, ...]
    ignored: tuple[Colour, ...] = ()

    @property
    def file(self) -> Path | None:
        return self.picture.file

    def content(self) -> bytes:
        return self.picture.content() + repr((self.colours, self.ignored)).encode()

    def decode(self, content: bytes | None = None, reading: Reading = RGB) -> Image.Image | Tensor:
        image: Image.Image | Tensor = self.picture.decode(None, reading)
        return image

    def numbers(self) -> NDArray[np.integer[Any]]:
        stored = self.picture.stored()
        if stored.shape[2] < 3:
            return self.picture.numbers()
        if stored.dtype != np.uint8:
            raise UnreadableImage(f"it holds colours of {stored.dtype}; a table of colours is of eight bits")
        keys = _key(stored[..., :3].astype(np.int64))
        found, where = np.unique(keys, return_inverse=True)
        number = {int(_key(np.asarray(colour))): place for place, colour in enumerate(self.colours)}
        number.update({int(_key(np.asarray(colour))): 255 for colour in self.ignored})
        strangers = [int(key) for key in found if int(key) not in number]
        if strangers:
            shown = "; ".join(f"{key >> 16}, {key >> 8 & 255}, {key & 255}" for key in strangers[:3])
            raise UnreadableImage(f"it has {len(strangers)} colours that are in no table, such as {shown}")
        classes = np.asarray([number[int(key)] for key in found], np.int64)
        return classes[where.reshape(keys.shape)]

    def stored(self) -> NDArray[Any]:
        return self.picture.stored()


def _key(colours: NDArray[Any]) -> NDArray[Any]:
    """One number for each colour (..., 3)."""
    made: NDArray[Any] = colours[..., 0] * 65536 + colours[..., 1] * 256 + colours[..., 2]
    return made
