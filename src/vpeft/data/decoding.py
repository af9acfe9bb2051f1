"""Opening of image files that may be hostile: named formats, plain files, limits that hold before a pixel is made.

What a file says of its size is compared with the `Limits` first. JPEG is decoded at a half, a quarter or an eighth of
its size where it exceeds them. Pictures that are decoded at the same time share one `MemoryPool`.
"""

from __future__ import annotations

import math
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin

from vpeft.data.problems import DataError
from vpeft.guarded import opened

# The decoders that files may reach, by Pillow's names. They run in this process, need no other program and are in wide
# use; PostScript, for one, would be handed to Ghostscript. HEIF is there where a plugin of Pillow brings it.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP", "PCX", "PNG", "PPM", "QOI"),
    *("SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
# Pillow's own limit of an image that is an error.
MAX_PIXELS = 178_956_970
# Panoramas have 20, lines of handwriting up to 100.
MAX_ASPECT = 200.0
# A picture of MAX_PIXELS with three channels of 32 bits has 2048.
MAX_MIB = 4096
# Memory of what is decoded at the same time; one picture that needs more is decoded alone.
POOL_BYTES = 2**30
# Bytes for each pixel on the way to eight-bit RGB: the decoded picture, a copy that is turned upright, and one with
# transparency laid over white.
_BYTES_PER_PIXEL = 12
_NUMPY = b"\x93NUMPY"
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Colour types of PNG with more than one channel, which Pillow cuts to eight bits.
_SEVERAL_CHANNELS = (2, 4, 6)
MEBI = 2**20


class UnreadableImage(DataError):
    """A file is not an image, is damaged, or holds values without a known range."""


class MissingImage(UnreadableImage):
    """There is no such file."""


class TooLargeImage(UnreadableImage):
    """An image exceeds a limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest image that is read; None takes the default above.

    Attributes:
        max_pixels: height times width.
        max_aspect: the longer side divided by the shorter side.
        max_mib: memory of the decoded values, and size of the file, in MiB.
    """

    max_pixels: int | None = None
    max_aspect: float | None = None
    max_mib: int | None = None

    @property
    def most_pixels(self) -> int:
        """`max_pixels`, or what was allowed for another image of this process, as for that of a mask."""
        return self.max_pixels or max(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or 0)

    def check(self, width: int, height: int, size: int = 0) -> None:
        """Raise `TooLargeImage` for an image (height, width) of `size` bytes that exceeds a limit, naming it."""
        most = self.most_pixels
        if width * height > most:
            raise TooLargeImage(
                f"it has {width * height} pixels, more than max_pixels = {most}; allow it with max_pixels ="
                f" {width * height}"
            )
        aspect, widest = max(width, height) / max(1, min(width, height)), self.max_aspect or MAX_ASPECT
        if aspect > widest:
            raise TooLargeImage(
                f"it is {width} x {height}, and one side is more than max_aspect = {widest:g} times the other; allow it"
                f" with max_aspect = {math.ceil(aspect)}"
            )
        self.check_bytes(size)

    def check_bytes(self, size: int, what: str = "its values need") -> None:
        """Raise `TooLargeImage` for more bytes than `max_mib`."""
        most = self.max_mib or MAX_MIB
        if size > most * MEBI:
            raise TooLargeImage(
                f"{what} {math.ceil(size / MEBI)} MiB, more than max_mib = {most}; allow it with max_mib ="
                f" {math.ceil(size / MEBI)}"
            )


class Stamp(NamedTuple):
    """What tells that a file is the one that was checked: its place on the disk, its size and its last change."""

    device: int
    number: int
    size: int
    changed: int

    @classmethod
    def of(cls, file: IO[bytes]) -> Stamp:
        """The stamp of an open file."""
        found = os.fstat(file.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def opened_image(source: Path | bytes, limits: Limits, stamp: Stamp | None = None) -> Iterator[IO[bytes]]:
    """The bytes of an image, open for reading; a folder, a pipe and a device are refused without waiting for them.

    Args:
        source: the file, or its bytes.
        limits: of the size of the file.
        stamp: what the file was when it was checked.

    Raises:
        UnreadableImage: it cannot be opened, is no plain file, is too large, or is no longer the file of `stamp`.
    """
    _allow(limits.max_pixels)
    if isinstance(source, bytes):
        limits.check_bytes(len(source), "it has")
        yield BytesIO(source)
        return
    try:
        file = opened(source)
    except FileNotFoundError:
        raise MissingImage("No such file or directory") from None
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"it cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    with file:
        found = Stamp.of(file)
        if stamp is not None and stamp != found:
            raise UnreadableImage("it is another file than the one that was checked, or its content has changed")
        limits.check_bytes(found.size, "it has")
        yield file


class MemoryPool:
    """Memory for pictures that are decoded at the same time: who finds none left waits until others are done."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.begin()

    def begin(self) -> None:
        """Forget who holds memory; a forked process calls it, since it has none of its parent's threads."""
        self._condition = threading.Condition()
        self._used = 0
        self._own = threading.local()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold `size` bytes, or the whole pool where they are more; a thread that holds some already waits for none."""
        held = getattr(self._own, "held", 0)
        size = 0 if held else min(size, self.limit)
        with self._condition:
            self._condition.wait_for(lambda: self._used + size <= self.limit)
            self._used += size
        self._own.held = held + size
        try:
            yield
        finally:
            self._own.held = held
            with self._condition:
                self._used = max(0, self._used - size)
                self._condition.notify_all()


POOL = MemoryPool(POOL_BYTES)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.begin)


@lru_cache(maxsize=1)
def known_formats() -> tuple[str, ...]:
    """Of `FORMATS` those that Pillow decodes here."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def first_bytes(file: IO[bytes]) -> bytes:
    """The first bytes of a file, which tell its format; the file is at its start again."""
    file.seek(0)
    start = file.read(32)
    file.seek(0)
    return start


def is_array_file(file: IO[bytes]) -> bool:
    """Whether it is a file of numpy's."""
    return first_bytes(file).startswith(_NUMPY)


def is_tiff_file(file: IO[bytes]) -> bool:
    """Whether it is a TIFF file."""
    return first_bytes(file).startswith(_TIFF)


@contextmanager
def picture(file: IO[bytes], limits: Limits) -> Iterator[Image.Image]:
    """A picture of one of `FORMATS`, decoded; meanwhile its memory counts in the pool.

    Raises:
        UnreadableImage: it exceeds a limit. Pillow's decoders raise nearly anything else.
    """
    with recognised(file, limits) as made:
        if isinstance(made, JpegImagePlugin.JpegImageFile):
            _decode_smaller(made, limits)
        limits.check(*made.size, made.width * made.height * len(made.getbands()))
        with POOL.take(made.width * made.height * _BYTES_PER_PIXEL):
            made.load()
            yield made


def recognised(file: IO[bytes], limits: Limits) -> Image.Image:
    """A picture of one of `FORMATS` by its header, not yet decoded; Pillow raises nearly anything else."""
    if first_bytes(file).startswith(_JPEG):
        # Not by Image.open, which refuses large ones before they can be decoded smaller.
        return JpegImagePlugin.JpegImageFile(file)
    made: Image.Image = Image.open(file, formats=known_formats())
    return made


def _decode_smaller(image: JpegImagePlugin.JpegImageFile, limits: Limits) -> None:
    """Let a JPEG of too many pixels be decoded at a half, a quarter or an eighth of its size.

    Progressive ones are left: their decoder keeps all coefficients of the full size.
    """
    width, height = image.size
    most = limits.most_pixels
    if width * height > most and "progressive" not in image.info:
        part = next((part for part in (2, 4) if -(-width // part) * -(-height // part) <= most), 8)
        image.draft(image.mode, (max(1, width // part), max(1, height // part)))


def _allow(max_pixels: int | None) -> None:
    """Raise Pillow's own limit, which counts for the whole process, to what the user allows; it is never lowered."""
    if max_pixels is not None and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


def array(file: IO[bytes], limits: Limits) -> NDArray[Any]:
    """The array in a `.npy` file; what its header says is compared with the limits and with the file's size first."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnreadableImage(f"it is a .npy file of version {version[0]}.{version[1]}, which is not read")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = header(file)
    if kind.hasobject or kind.names is not None or any(side < 0 for side in shape):
        raise UnreadableImage(f"it holds {kind}, not numbers")
    size, at = math.prod(shape) * kind.itemsize, file.tell()
    limits.check_bytes(size)
    if file.seek(0, os.SEEK_END) - at < size:
        raise UnreadableImage(f"its header says {size} bytes, and fewer are there")
    file.seek(0)
    with POOL.take(2 * size):
        values: NDArray[Any] = np.load(file, allow_pickle=False)
    return values


def is_deep_png(file: IO[bytes]) -> bool:
    """Whether it is a PNG with colour or opacity in 16 bits, of which Pillow gives the upper eight."""
    start = first_bytes(file)
    return start.startswith(_PNG) and len(start) > 25 and start[24] == 16 and start[25] in _SEVERAL_CHANNELS


def deep_png(file: IO[bytes], limits: Limits) -> NDArray[np.uint16]:
    """A PNG with colour or opacity in 16 bits as (H, W, C), upright; a transparent colour becomes a fourth channel.

    Pillow has no mode for it, but unpacks the upper or the lower bytes, as it is told.

    Raises:
        UnreadableImage: it exceeds a limit. Pillow's decoder raises nearly anything on damaged bytes.
    """
    start = first_bytes(file)
    width, height = struct.unpack(">II", start[16:24])
    channels = {2: 3, 4: 2, 6: 4}[start[25]]
    limits.check(width, height, 2 * channels * width * height)
    with POOL.take(width * height * channels * 8):
        if channels == 2:  # two channels of 16 bits are stored as four of eight
            four, _ = _unpacked(file, "RGBA", "RGBA")
            values = np.ascontiguousarray(four).view(">u2").astype(np.uint16)
            return values
        mode = "RGB" if channels == 3 else "RGBA"
        upper, _ = _unpacked(file, mode, f"{mode};16B")
        lower, hidden = _unpacked(file, mode, f"{mode};16L")
        values = upper.astype(np.uint16) * np.uint16(256) + lower
        if channels == 3 and isinstance(hidden, tuple):
            seen = np.where((values == hidden).all(axis=2, keepdims=True), 0, 65535).astype(np.uint16)
            values = np.concatenate([values, seen], axis=2)
    return values


def _unpacked(file: IO[bytes], mode: str, raw: str) -> tuple[NDArray[np.uint8], Any]:
    """The pixels of a PNG, upright, unpacked as Pillow's raw mode `raw`, and the colour that it says is transparent."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as opened_png:
        opened_png._mode = mode
        opened_png.tile = [part._replace(args=raw) for part in opened_png.tile]
        hidden = opened_png.info.pop("transparency", None)
        opened_png.load()
        return np.asarray(upright(opened_png)), hidden


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are sound
        return image


def without_text(data: bytes) -> bytes:
    """A PNG file without its text chunks, which Pillow refuses when they are long and pixels do not need."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunk = data[at : at + 12 + length]
        if chunk[4:8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(chunk)
        at += 12 + length
    return b"".join(kept)
