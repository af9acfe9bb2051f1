"""The values of an image file as they are stored, and how they become numbers from 0 to 1 in as many channels as asked.

Files that Pillow, tifffile or numpy read: pictures, TIFF with any number of bands, sixteen bits or floating point, and
`.npy` arrays (H, W), (H, W, C) or (C, H, W). The rules of plain eight-bit RGB are in `images.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpeft.data.config import Window
from vpeft.data.decoding import (
    POOL,
    Limits,
    Stamp,
    array,
    deep_png,
    is_array_file,
    is_deep_png,
    is_tiff_file,
    opened_image,
    picture,
    upright,
)
from vpeft.data.decoding import UnreadableImage as UnreadableImage

MOST_CHANNELS = 16
# Luminance of ITU-R BT.601, as Pillow's "L".
_GREY = np.array([0.299, 0.587, 0.114])
_CONVERTED = frozenset({"MINISWHITE", "PALETTE", "SEPARATED", "YCBCR", "CIELAB"})
PERCENTILES = (1.0, 99.0)
# What is left of a range when at most a quarter of it is used looks black on a screen and to a model.
DARK = 0.25
# Numbers that are converted at a time, so that the intermediate ones in double precision need little memory.
_PORTION = 2**22
DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The lowest and highest value of images with more than eight bits, and the top of their number type."""

    low: float
    high: float
    top: float

    def joined(self, other: ValueRange | None) -> ValueRange:
        """The range of both."""
        if other is None:
            return self
        return ValueRange(min(self.low, other.low), max(self.high, other.high), max(self.top, other.top))

    @property
    def dark(self) -> bool:
        """Whether the values use so little of their type that the images come out nearly black."""
        return 0 < self.high <= DARK * self.top

    @property
    def fitting(self) -> tuple[float, float]:
        """A window that holds all values: 0 to the top of the fewest bits, or the values' own limits."""
        if self.low >= 0 and self.high > 255 and self.high.is_integer():
            return 0.0, float(2 ** int(self.high).bit_length() - 1)
        return min(self.low, 0.0), self.high if self.high > self.low else self.low + 1.0


def is_array(path: Path) -> bool:
    """Whether this is the name of a file of numpy's."""
    return path.suffix.lower() == ".npy"


def stored_values(
    source: Path | bytes | IO[bytes] | Image.Image, channels: int | None = None, limits: Limits = DEFAULT
) -> NDArray[Any]:
    """The numbers in an image file as (H, W, C), of the type in which they are stored.

    Args:
        source: the file, opened or not, or its bytes.
        channels: how many are expected, which tells (H, W, C) from (C, H, W) where both can be.
        limits: the largest image that is read.

    Raises:
        UnreadableImage: it is damaged, too large, or no picture.
    """
    if isinstance(source, Image.Image):
        return _of_pillow(source)
    if isinstance(source, Path | bytes):
        with opened_image(source, limits) as file:
            return stored_values(file, channels, limits)
    try:
        if is_array_file(source):
            values = channels_last(array(source, limits), channels)
        elif is_tiff_file(source) and (bands := _bands(source, channels, limits)) is not None:
            values = bands
        elif is_deep_png(source):
            values = opaque(deep_png(source, limits), channels)
        else:
            with picture(source, limits) as opened:
                return _of_pillow(opened)
        limits.check(values.shape[1], values.shape[0])
        return values
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise UnreadableImage(str(error) or type(error).__name__) from error


def stored_mask(
    source: Path | bytes | Image.Image, limits: Limits = DEFAULT, stamp: Stamp | None = None
) -> NDArray[Any]:
    """The class numbers (H, W) in a picture: grey values, the numbers of a palette, 0 and 1 of one bit, or an array.

    Args:
        source: the file, or its bytes.
        limits: the largest mask that is read.
        stamp: what the file was when it was checked.

    Raises:
        UnreadableImage: it is damaged or too large, it has changed, or its channels differ, so that it shows colours
            and no numbers.
    """
    try:
        if isinstance(source, Image.Image):
            return _numbers(source)
        with opened_image(source, limits, stamp) as file:
            if is_array_file(file):
                return _one_channel(channels_last(array(file, limits)))
            if is_deep_png(file):
                return _one_channel(opaque(deep_png(file, limits), 3))
            with picture(file, limits) as opened:
                return _numbers(opened)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # as above
        raise UnreadableImage(str(error) or type(error).__name__) from error


def _numbers(image: Image.Image) -> NDArray[Any]:
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode == "PA":
        image = image.convert("P")
    if image.mode in ("LA", "RGBA"):
        image = image.convert(image.mode[:-1])
    return _one_channel(channels_last(np.asarray(image)))


def _one_channel(values: NDArray[Any]) -> NDArray[Any]:
    if (values != values[..., :1]).any():
        raise UnreadableImage(
            "it shows colours; a mask holds a class number in each pixel, in one channel or a palette"
        )
    if values.dtype.kind not in "biu":
        raise UnreadableImage(f"it holds {values.dtype}; a mask holds whole numbers")
    return values[..., 0]


def opaque(values: NDArray[np.uint16], channels: int | None) -> NDArray[np.uint16]:
    """16 bits with opacity laid over white, where one or three channels are asked for; else as they are."""
    if values.shape[2] not in (2, 4) or channels not in (1, 3):
        return values
    made = np.empty((*values.shape[:2], values.shape[2] - 1), np.uint16)
    for rows in _rows(values):
        opacity = values[rows][..., -1:] / 65535.0
        made[rows] = (values[rows][..., :-1] * opacity + 65535.0 * (1.0 - opacity) + 0.5).astype(np.uint16)
    return made


def _rows(values: NDArray[Any]) -> Iterator[slice]:
    """Slices of the first axis with about as many numbers as are converted at a time."""
    step = max(1, _PORTION // max(1, values[:1].size))
    return (slice(start, start + step) for start in range(0, len(values), step))


def eight_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Values of any number type as eight bits, by the rules of `images.py`; `UnreadableImage` without a range."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    factor = 255.0 / top_of(values)
    made = np.empty(values.shape, np.uint8)
    for rows in _rows(values):
        # Half is added before cutting off, so that equal steps of input give equal steps of output (rint would not).
        made[rows] = (values[rows].astype(np.float64) * factor + 0.5).astype(np.uint8)
    return made


def _bands(source: IO[bytes], channels: int | None, limits: Limits) -> NDArray[Any] | None:
    """The first picture of a TIFF file (H, W, C); None for colours that need a conversion, which Pillow does."""
    with tifffile.TiffFile(source, name="image") as file:
        if getattr(getattr(file.pages[0], "photometric", None), "name", "") in _CONVERTED:
            return None
        series = file.series[0]
        limits.check_bytes(series.nbytes)
        with POOL.take(2 * series.nbytes):
            axes, values = series.axes, series.asarray()
    while values.ndim > 3:  # several pictures, as an animation's frames: the first
        axes, values = axes[1:], values[0]
    # An array (H, W, C) that was written without a word about it looks like H pages.
    pages_are_rows = axes[0] in "IQ" and values.ndim == 3 and values.shape[2] == channels != values.shape[0]
    if values.ndim == 3 and not axes.endswith(("S", "C")) and axes[0] in "SCIQZ" and not pages_are_rows:
        values = np.moveaxis(values, 0, 2)
    return channels_last(values, values.shape[2] if values.ndim == 3 else 1)


def _of_pillow(image: Image.Image) -> NDArray[Any]:
    image = upright(image)
    if image.mode in ("L", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        if image.mode in ("L", "RGB") and image.has_transparency_data:
            image = image.convert("RGBA")
        return channels_last(np.asarray(image), 0)
    if image.mode == "1":
        return channels_last(np.asarray(image.convert("L")), 0)
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return np.asarray(image.convert(wanted))


def channels_last(values: NDArray[Any], channels: int | None = None) -> NDArray[Any]:
    """An image (H, W), (H, W, C) or (C, H, W) as (H, W, C); at most 16 channels, `channels` where it is known.

    Raises:
        UnreadableImage: the shape is none of an image.
    """
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3:
        raise UnreadableImage(f"it has the shape {values.shape}; an image is (H, W), (H, W, C) or (C, H, W)")
    first, last = values.shape[0], values.shape[2]
    if channels and last != channels and first == channels:
        return np.moveaxis(values, 0, 2)
    if last <= MOST_CHANNELS or (channels and last == channels):
        return values
    if first <= MOST_CHANNELS:
        return np.moveaxis(values, 0, 2)
    raise UnreadableImage(f"it has the shape {values.shape}: neither end is a number of channels up to {MOST_CHANNELS}")


def top_of(values: NDArray[Any]) -> float:
    """The value that is white, by the number type: 255, 65535, or 1.

    Integers wider than sixteen bits are often eight-bit values that somebody converted: nothing above 255 means so.

    Raises:
        UnreadableImage: there are no pixels, or no number type, or values that are not finite.
    """
    if values.dtype == np.uint8:
        return 255.0
    if values.dtype == np.bool_:
        return 1.0
    low, high = limits(values)
    if values.dtype.kind == "f":
        top = 1.0 if high <= 1 else 255.0
    else:
        top = 65535.0 if values.dtype.itemsize == 2 or high > 255 else 255.0
    if low < 0 or high > top:
        raise UnreadableImage(
            f"its values go from {low:g} to {high:g}; the known ranges are 0 to {top:g}. "
            f"Give the range that matters with window = ({low:g}, {high:g}), or window = 'percentiles'"
        )
    return top


def limits(values: NDArray[Any]) -> tuple[float, float]:
    """The lowest and the highest value; raises `UnreadableImage` where there is none or one that is not finite."""
    if values.size == 0:
        raise UnreadableImage("it has no pixels")
    if values.dtype.kind not in "biuf":
        raise UnreadableImage(f"it holds {values.dtype}, not numbers")
    low, high = float(np.min(values)), float(np.max(values))
    if not np.isfinite([low, high]).all():
        raise UnreadableImage("its values are not all finite")
    return low, high


def range_of(values: NDArray[Any]) -> ValueRange | None:
    """The range of values that are stored with more than eight bits; None for those of eight."""
    if values.dtype == np.bool_ or values.dtype.itemsize < 2 or values.dtype.kind not in "iuf":
        return None
    low, high = limits(values)
    if values.dtype.kind == "f":
        return ValueRange(low, high, 1.0 if high <= 1 else 255.0)
    return ValueRange(low, high, 65535.0 if values.dtype.itemsize == 2 or high > 255 else 255.0)


# Under which an image carries the range of its stored values, where they have more than eight bits.
_RANGE = "vpeft_value_range"
_I = TypeVar("_I", Image.Image, Tensor)


def with_range(image: _I, values: NDArray[Any]) -> _I:
    """The image, which now knows the range of the values that it was made of, where they have more than eight bits."""
    found = range_of(values)
    if found is not None and isinstance(image, Image.Image):
        image.info[_RANGE] = found
    elif found is not None:
        setattr(image, _RANGE, found)
    return image


def value_range(image: Any) -> ValueRange | None:
    """The range of the stored values of an image, where they have more than eight bits."""
    found = image.info.get(_RANGE) if isinstance(image, Image.Image) else getattr(image, _RANGE, None)
    return found if isinstance(found, ValueRange) else None


def scaled(values: NDArray[Any], window: Window) -> NDArray[np.float64]:
    """Values of any number type as numbers from 0 to 1.

    Args:
        values: of one image.
        window: "type" (or "auto", once it has been found out) divides by the top of the number type; "percentiles"
            takes the 1st percentile of the image as 0 and the 99th as 1; two numbers are what is 0 and what is 1.
            A window beyond 255 leaves images of eight bits as they are, since it is meant for the others.
    """
    return between(values, *ends(values, window))


def ends(values: NDArray[Any], window: Window) -> tuple[float, float]:
    """The value that becomes 0 and the value that becomes 1; see `scaled`."""
    eight = values.dtype == np.uint8 or values.dtype == np.bool_
    if window in ("type", "auto") or (isinstance(window, tuple) and eight and window[1] > 255):
        return 0.0, top_of(values)
    limits(values)
    if isinstance(window, tuple):
        return window
    low, high = (float(one) for one in np.percentile(values, PERCENTILES))
    return low, high


def between(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    """Values as numbers from 0 (`low`) to 1 (`high`); an image of one value is black, or grey above 0."""
    if high <= low:
        return np.full(values.shape, 0.0 if low <= 0 else 0.5)
    return np.clip((values.astype(np.float64) - low) / (high - low), 0.0, 1.0)


def as_channels(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Values (H, W, C) from 0 to 1 in another number of channels: grey is repeated, colour becomes its luminance.

    Raises:
        UnreadableImage: there is no rule from so many channels to so many.
    """
    have = values.shape[2]
    if have == channels:
        return values
    if have == 1:
        return np.repeat(values, channels, axis=2)
    if have == 3 and channels == 1:
        grey: NDArray[Any] = (values @ _GREY)[..., None]
        return grey
    raise UnreadableImage(
        f"it has {have} channels, and {channels} are asked for; say channels = {have} to read them all"
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """How files become images: the number of channels, the window of values, and the largest picture.

    Attributes:
        channels: 3 gives eight-bit RGB pictures; any other number gives float tensors (C, H, W) from 0 to 1.
        window: see `scaled`.
        max_pixels: height times width of the largest image that is read; None is Pillow's limit of 178956970. JPEG
            with more is decoded at a half, a quarter or an eighth of its size.
        max_aspect: the longer side of the narrowest image, divided by the shorter side; None is 200.
        max_mib: memory of the decoded values and size of the file, in MiB; None is 4096.
    """

    channels: int = 3
    window: Window = "type"
    max_pixels: int | None = None
    max_aspect: float | None = None
    max_mib: int | None = None

    @property
    def limits(self) -> Limits:
        """The largest image that is read."""
        return Limits(self.max_pixels, self.max_aspect, self.max_mib)

    @property
    def plain(self) -> bool:
        """Whether images are read as eight-bit RGB by the rules of `images.py`."""
        return self.channels == 3 and self.window in ("type", "auto")

    def of_values(self, values: NDArray[Any]) -> Image.Image | Tensor:
        """Stored values (H, W, C) as an RGB picture, or as a float tensor (C, H, W) where channels are not three."""
        low, high = self._ends(values)
        if self.channels != 3:
            self.limits.check_bytes(4 * self.channels * values.shape[0] * values.shape[1])
        with POOL.take(8 * self.channels * values.shape[0] * values.shape[1]):
            made = np.empty((*values.shape[:2], self.channels), np.uint8 if self.channels == 3 else np.float32)
            for rows in _rows(values):
                part = as_channels(self._part(values[rows], low, high), self.channels)
                # Half is added before cutting off, so that equal steps of input give equal steps of output.
                made[rows] = (part * 255.0 + 0.5).astype(np.uint8) if self.channels == 3 else part
            if self.channels == 3:
                return with_range(Image.fromarray(made), values)
            return with_range(torch.from_numpy(np.ascontiguousarray(np.moveaxis(made, 2, 0))), values)

    def _part(self, values: NDArray[Any], low: float, high: float) -> NDArray[Any]:
        if values.shape[2] in (2, 4) and self.channels in (1, 3) and values.dtype == np.uint8:
            opacity = values[..., -1:] / 255.0  # laid over white
            return between(values[..., :-1], low, high) * opacity + (1.0 - opacity)
        return between(values, low, high)

    def _ends(self, values: NDArray[Any]) -> tuple[float, float]:
        opaque = values.shape[2] in (2, 4) and self.channels in (1, 3) and values.dtype == np.uint8
        return ends(values[..., :-1] if opaque else values, self.window)


RGB = Reading()
