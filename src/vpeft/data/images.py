"""Any picture that Pillow reads, as plain RGB with eight bits, the same on every machine.

The rules, since "convert to RGB" hides several choices:
- an animated file gives its first frame; EXIF orientation is applied;
- transparency (an alpha channel, a transparent palette entry or colour) is laid over white, as a page or a viewer does;
- sixteen bits are divided by 257 (65535 becomes 255), never stretched per image, so brightness stays comparable;
- integers of 32 bits are taken as eight bits when nothing exceeds 255, as sixteen otherwise;
- floating point is taken as 0 to 1 when nothing exceeds 1, as 0 to 255 otherwise; anything beyond is refused;
- arrays (`.npy`) and TIFF with other than one, three or four bands follow the rules of `pixels.py`;
- CMYK and YCbCr use Pillow's plain conversion and embedded colour profiles are not applied; LAB goes through sRGB.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from vpeft.data.pixels import RGB, Reading, is_array, is_tiff, stored_values, top_of, with_range
from vpeft.data.pixels import UnreadableImage as UnreadableImage
from vpeft.data.problems import DataError

WHITE = (255, 255, 255, 255)

# Pillow names these formats but cannot decode them by itself (stubs, or an outside program is needed).
_NOT_DECODED = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})


# What archivers, network drives, notebooks and Python leave beside images; folders with a dot in front are hidden too.
LEFT_BY_PROGRAMS = frozenset(
    {
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "#recycle",
        "@Recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """The file suffixes, lower case with their dot, of the formats that Pillow decodes here."""
    Image.init()
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_DECODED
    )


def is_image_name(name: str | PurePath) -> bool:
    """Whether a file of this name should be an image: a known suffix, and not a hidden file."""
    path = PurePath(name)
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")


def is_hidden(name: str) -> bool:
    """Whether a folder of this name belongs to a program and not to the data."""
    return name.startswith(".") or name in LEFT_BY_PROGRAMS


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """All visible files in `folder` and its folders, sorted by path, and the folders that were left out as hidden."""
    files: list[Path] = []
    hidden: list[Path] = []
    for base, folders, names in os.walk(folder):
        hidden += [Path(base, name) for name in folders if is_hidden(name)]
        folders[:] = [name for name in folders if not is_hidden(name)]
        files += [Path(base, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix()), sorted(hidden)


def holds_image(folder: Path) -> bool:
    """Whether an image or an array is somewhere in `folder`; looks no further than the first."""
    for _, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if any(is_image_name(name) or (name.endswith(".npy") and not name.startswith(".")) for name in names):
            return True
    return False


def pictures_among(files: Iterable[Path]) -> set[Path]:
    """The files that are images; arrays (`.npy`) are where nothing else is, since they often lie beside as features."""
    listed = list(files)
    images = {path for path in listed if is_image_name(path)}
    return images or {path for path in listed if is_array(path) and not path.name.startswith(".")}


def readable(path: str | PurePath) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 become \\xe9 and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_images(patterns: Iterable[str | Path]) -> list[Path]:
    """The images that files, folders (searched through) and glob patterns name, sorted within each, without repeats.

    A file named as such is kept whatever its suffix. Raises `DataError` for a pattern that finds nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            matches = sorted(pictures_among(files_below(path)[0]))
        else:
            named = [one for one in map(Path, glob.glob(str(path), recursive=True)) if one.is_file()]
            matches = sorted(pictures_among(named))
        if not matches:
            what = "holds no image" if path.is_dir() else "does not exist, nor does it match an image as a pattern"
            raise DataError(f"{pattern} {what}. Give image files, folders, or patterns such as 'photos/*.jpg'.")
        found.update(dict.fromkeys(matches))
    return list(found)


def read_image(source: str | Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """The picture in a file, or in the bytes of one, as an RGB image of eight bits (see the rules above).

    Args:
        source: the file, or its bytes.
        max_pixels: height times width of the largest image that is read; None is Pillow's limit.

    Raises:
        UnreadableImage: it is damaged, truncated or no image.
    """
    made = read(source, RGB if max_pixels is None else Reading(max_pixels=max_pixels))
    assert isinstance(made, Image.Image)  # of three channels
    return made


def read(source: str | Path | bytes, reading: Reading) -> Image.Image | Tensor:
    """The image in a file, or in the bytes of one, in the channels and the window of `reading`.

    Returns:
        An RGB picture where `reading` has three channels, else a float tensor (C, H, W) from 0 to 1.

    Raises:
        UnreadableImage: it is damaged, truncated or no image, or has channels that do not fit.
    """
    name = "an image in memory" if isinstance(source, bytes) else readable(str(source))
    file = Path(source) if isinstance(source, str) else source
    try:
        _allow(reading.max_pixels)
        if reading.plain and not is_array(file):
            return _picture(file, reading)
        values = stored_values(file, reading.channels)
        _not_too_large(values.shape[1], values.shape[0], reading)
        return reading.of_values(values)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {reason(error)}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImage(f"{name}: {reason(error)}") from error


def _picture(source: Path | bytes, reading: Reading) -> Image.Image:
    """A file as RGB by Pillow; a TIFF that Pillow does not know, by its bands."""
    try:
        return _by_pillow(source, reading)
    except Image.DecompressionBombError:
        raise
    except Exception as error:  # as in read
        if "MAX_TEXT" in str(error):
            data = source if isinstance(source, bytes) else source.read_bytes()
            return _by_pillow(without_text(data), reading)
        if isinstance(error, UnreadableImage) or not is_tiff(source):
            raise
        try:
            values = stored_values(source)
        except UnreadableImage:
            raise error from None
        made = reading.of_values(values)
        assert isinstance(made, Image.Image)  # of three channels
        return made


def _by_pillow(source: Path | bytes, reading: Reading) -> Image.Image:
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
        _not_too_large(*opened.size, reading)
        opened.load()
        return to_rgb(opened)


def _allow(max_pixels: int | None) -> None:
    """Raise Pillow's own limit, which counts for the whole process, to what the user allows; it is never lowered."""
    if max_pixels is not None and Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


def _not_too_large(width: int, height: int, reading: Reading) -> None:
    if reading.max_pixels is not None and width * height > reading.max_pixels:
        raise UnreadableImage(
            f"it has {width * height} pixels, more than max_pixels = {reading.max_pixels}; raise that to read it"
        )


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


def read_header(data: bytes) -> None:
    """Only recognise the image in `data`, without decoding it; raises `UnreadableImage`."""
    if is_array(data):
        return
    try:
        with Image.open(BytesIO(data)):
            pass
    except Exception as error:  # as in read_image
        raise UnreadableImage(reason(error)) from error


def reason(error: Exception) -> str:
    """Pillow's complaint without the address of the buffer in it, which would differ from run to run."""
    text = str(error) or type(error).__name__
    if too_large := re.search(r"Image size \((\d+) pixels\) exceeds limit", text):
        return (
            f"it has {too_large[1]} pixels, more than Pillow reads unasked; allow it with max_pixels = {too_large[1]}"
        )
    return "not an image that Pillow knows" if "cannot identify image file" in text else text


def to_rgb(image: Image.Image) -> Image.Image:
    """`image`, of any mode, as RGB with eight bits per channel, upright and opaque."""
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        return with_range(Image.fromarray(_eight_bits(values)).convert("RGB"), values)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only with inPlace
        return converted
    if image.has_transparency_data or image.mode == "RGBa":
        page = Image.new("RGBA", image.size, WHITE)
        page.alpha_composite(image.convert("RGBA"))
        return page.convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are sound
        return image


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Values of any number type as eight bits, by the rules at the top; raises `UnreadableImage` without a range."""
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    top = top_of(values)
    # Half is added before cutting off, so that equal steps of input give equal steps of output (rint would not).
    return (values.astype(np.float64) * (255.0 / top) + 0.5).astype(np.uint8)


def as_eight_bits(images: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """A stack of images (N, H, W, ...) as eight bits, one range for all of it; raises `DataError` naming `name`."""
    try:
        return _eight_bits(images)
    except UnreadableImage as error:
        raise DataError(f"{name}: {error}. Store images as uint8 (0 to 255), uint16, or floats from 0 to 1.") from error


def as_image(value: Any) -> Image.Image:
    """A PIL image, an array (H, W[, C]), a tensor (C, H, W) or the bytes of a file, as RGB; raises `DataError`."""
    if isinstance(value, Image.Image):
        return to_rgb(value)
    if isinstance(value, bytes):
        return read_image(value)
    if hasattr(value, "permute"):  # a tensor: channels first
        value = (value.permute(1, 2, 0) if value.ndim == 3 else value).cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):
        pixels = as_eight_bits(value, "an image of the data set")
        return to_rgb(Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels))
    raise DataError(
        f"The data set gives {type(value).__name__} where an image is expected. "
        "Give PIL images, arrays (H, W, 3), tensors (3, H, W) or encoded bytes; leave transforms to vpeft."
    )
