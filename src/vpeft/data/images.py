"""Any picture that Pillow reads, as plain RGB with eight bits, the same on every machine.

The rules, since "convert to RGB" hides several choices:
- an animated file gives its first frame; EXIF orientation is applied;
- transparency (an alpha channel, a transparent palette entry or colour) is laid over white, as a page or a viewer does;
- sixteen bits are divided by 257 (65535 becomes 255), never stretched per image, so brightness stays comparable;
- integers of 32 bits are taken as eight bits when nothing exceeds 255, as sixteen otherwise;
- floating point is taken as 0 to 1 when nothing exceeds 1, as 0 to 255 otherwise; anything beyond is refused;
- CMYK and YCbCr use Pillow's plain conversion and embedded colour profiles are not applied; LAB goes through sRGB.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from vpeft.data.problems import DataError

WHITE = (255, 255, 255, 255)

# Pillow names these formats but cannot decode them by itself (stubs, or an outside program is needed).
_NOT_DECODED = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})


class UnreadableImage(DataError):
    """A file is not an image, is damaged, or holds values without a known range."""


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
        candidates = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
        matches = sorted(one for one in candidates if one.is_file() and is_image_name(one))
        if not matches:
            what = "holds no image" if path.is_dir() else "does not exist, nor does it match an image as a pattern"
            raise DataError(f"{pattern} {what}. Give image files, folders, or patterns such as 'photos/*.jpg'.")
        found.update(dict.fromkeys(matches))
    return list(found)


def read_image(source: str | Path | bytes) -> Image.Image:
    """The picture in a file, or in the bytes of one, as an RGB image of eight bits (see the rules above).

    Raises `UnreadableImage` when it is damaged, truncated or no image.
    """
    name = "an image in memory" if isinstance(source, bytes) else str(source)
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            opened.load()
            return to_rgb(opened)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImage(f"{name}: {reason(error)}") from error


def read_header(data: bytes) -> None:
    """Only recognise the image in `data`, without decoding it; raises `UnreadableImage`."""
    try:
        with Image.open(BytesIO(data)):
            pass
    except Exception as error:  # as in read_image
        raise UnreadableImage(reason(error)) from error


def reason(error: Exception) -> str:
    """Pillow's complaint without the address of the buffer in it, which would differ from run to run."""
    text = str(error) or type(error).__name__
    return "not an image that Pillow knows" if "cannot identify image file" in text else text


def to_rgb(image: Image.Image) -> Image.Image:
    """`image`, of any mode, as RGB with eight bits per channel, upright and opaque."""
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
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
    """Values of any number type as eight bits, by the rules at the top; raises `UnreadableImage` without a known range.

    Integers wider than sixteen bits are often eight-bit values that somebody converted: nothing above 255 means so.
    """
    if values.dtype == np.uint8:
        return values.astype(np.uint8, copy=False)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.size == 0:
        raise UnreadableImage("it has no pixels")
    if values.dtype.kind not in "iuf":
        raise UnreadableImage(f"it holds {values.dtype}, not numbers")
    low, high = float(np.min(values)), float(np.max(values))
    if not np.isfinite([low, high]).all():
        raise UnreadableImage("its values are not all finite")
    if values.dtype.kind == "f":
        top = 1.0 if high <= 1 else 255.0
    else:
        top = 65535.0 if values.dtype.itemsize == 2 or high > 255 else 255.0
    if low < 0 or high > top:
        raise UnreadableImage(f"its values go from {low:g} to {high:g}; the known ranges are 0 to {top:g}")
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
