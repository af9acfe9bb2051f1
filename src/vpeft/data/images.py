"""Any picture that Pillow reads, as plain RGB with eight bits, the same on every machine.

The rules, since "convert to RGB" hides several choices:
- an animated file gives its first frame; EXIF orientation is applied;
- transparency (an alpha channel, a transparent palette entry or colour) is laid over white, as a page or a viewer does;
- sixteen bits are divided by 257 (65535 becomes 255), never stretched per image, so brightness stays comparable; PNG
  and TIFF in colour are read in all of their bits, AVIF, HEIF and JPEG 2000 in colour in the eight that Pillow gives;
- integers of 32 bits are taken as eight bits when nothing exceeds 255, as sixteen otherwise;
- floating point is taken as 0 to 1 when nothing exceeds 1, as 0 to 255 otherwise; anything beyond is refused;
- arrays (`.npy`) and TIFF with other than one, three or four bands follow the rules of `pixels.py`;
- JPEG with more than `max_pixels` is decoded at a half, a quarter or an eighth of its size;
- CMYK and YCbCr use Pillow's plain conversion and embedded colour profiles are not applied; LAB goes through sRGB.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torch import Tensor

from vpeft.data.decoding import (
    Limits,
    Stamp,
    deep_png,
    is_array_file,
    is_deep_png,
    is_tiff_file,
    known_formats,
    opened_image,
    picture,
    recognised,
    upright,
    without_text,
)
from vpeft.data.decoding import UnreadableImage as UnreadableImage
from vpeft.data.pixels import RGB, Reading, eight_bits, is_array, opaque, stored_values, with_range
from vpeft.data.problems import DataError, Problems

WHITE = (255, 255, 255, 255)

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
    """The file suffixes, lower case with their dot, of the formats that are decoded here."""
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in known_formats() or name == "MPO"  # JPEG with more pictures behind the first
    )


def is_image_name(name: str | PurePath) -> bool:
    """Whether a file of this name should be an image: a known suffix, and not a hidden file."""
    path = PurePath(name)
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")


def is_hidden(name: str) -> bool:
    """Whether a folder of this name belongs to a program and not to the data."""
    return name.startswith(".") or name in LEFT_BY_PROGRAMS


class FilesBelow(NamedTuple):
    """The files in a folder and its folders, sorted, and what was left out.

    Attributes:
        files: visible files.
        hidden: folders of programs and those whose names begin with a dot.
        links: links to folders; they are not followed, so that no image counts twice and none leads in a circle.
        closed: folders that cannot be opened.
        dotted: images whose names begin with a dot; those that begin with ._ are no images, but notes of macOS.
    """

    files: list[Path]
    hidden: list[Path]
    links: list[Path]
    closed: list[Path]
    dotted: list[Path]

    def note(self, problems: Problems, root: Path) -> None:
        """Add what was left out to `problems`, named by its path from `root`."""
        for folder in self.hidden:
            if count := images_in(folder):
                problems.add("hidden", name_below(folder, root), "1 image" if count == 1 else f"{count} images")
        for path in self.links:
            problems.add("linked", name_below(path, root))
        for path in self.closed:
            problems.add("closed", name_below(path, root))
        for path in self.dotted:
            problems.add("ignored", name_below(path, root), "its name begins with a dot")


def files_below(folder: Path) -> FilesBelow:
    """All visible files in `folder` and its folders, sorted by path, and what was left out."""
    found = FilesBelow([], [], [], [], [])
    closed: list[OSError] = []
    for base, folders, names in os.walk(folder, onerror=closed.append):
        hidden = [name for name in folders if is_hidden(name)]
        links = [name for name in folders if name not in hidden and os.path.islink(Path(base, name))]
        found.hidden.extend(Path(base, name) for name in hidden)
        found.links.extend(Path(base, name) for name in links)
        folders[:] = [name for name in folders if name not in hidden and name not in links]
        found.files.extend(Path(base, name) for name in names if not name.startswith("."))
        found.dotted.extend(
            Path(base, name)
            for name in names
            if name.startswith(".") and not name.startswith("._") and is_image_name(name.lstrip("."))
        )
    found.closed.extend(Path(os.fsdecode(error.filename)) for error in closed if error.filename is not None)
    found.files.sort(key=lambda path: path.relative_to(folder).as_posix())
    for paths in found[1:]:
        paths.sort()
    return found


def images_in(folder: Path) -> int:
    """The number of images in a folder and its folders, whatever they are called."""
    return sum(is_image_name(name.lstrip(".")) for _, _, names in os.walk(folder) for name in names)


def name_below(path: Path, root: Path) -> str:
    """The path from `root` as text; "." for `root` itself."""
    return readable(path.relative_to(root).as_posix())


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

    A file named as such is kept whatever its suffix. What is left out is a `DataWarning`.

    Raises:
        DataError: a pattern finds nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = _expanded(pattern)
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            below = files_below(path)
            matches = sorted(pictures_among(below.files))
            problems = Problems()
            below.note(problems, path)
            problems.report(readable(str(pattern)), strict=False)
        else:
            named = [one for one in map(Path, glob.glob(str(path), recursive=True)) if one.is_file()]
            matches = sorted(pictures_among(named))
        if not matches:
            what = "does not exist, nor does it match an image as a pattern"
            if path.is_dir():
                what = "holds no image"
            elif path.exists():
                what = "is no plain file"
            raise DataError(f"{pattern} {what}. Give image files, folders, or patterns such as 'photos/*.jpg'.")
        found.update(dict.fromkeys(matches))
    return list(found)


def _expanded(pattern: str | Path) -> Path:
    try:
        return Path(pattern).expanduser()
    except RuntimeError:
        raise DataError(f"{pattern} names the home folder of a user that this machine does not know.") from None


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


def read(source: str | Path | bytes | IO[bytes], reading: Reading, stamp: Stamp | None = None) -> Image.Image | Tensor:
    """The image in a file, or in the bytes of one, in the channels and the window of `reading`.

    Args:
        source: the file, its bytes, or the open file.
        reading: how.
        stamp: what the file was when it was checked.

    Returns:
        An RGB picture where `reading` has three channels, else a float tensor (C, H, W) from 0 to 1.

    Raises:
        UnreadableImage: it is damaged, truncated or no image, exceeds a limit, has channels that do not fit, is no
            plain file, or is no longer the file of `stamp`.
    """
    named = isinstance(source, str | Path)
    name = f"{readable(str(source))}: " if named else "an image in memory: " if isinstance(source, bytes) else ""
    file = Path(source) if isinstance(source, str) else source
    try:
        if not isinstance(file, Path | bytes):
            return _read(file, reading)
        with opened_image(file, reading.limits, stamp) as opened:
            return _read(opened, reading)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}{reason(error)}") from error
    except MemoryError as error:
        raise UnreadableImage(
            f"{name}there is no memory for it; a smaller max_pixels leaves such images out"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImage(f"{name}{reason(error)}") from error


def _read(file: IO[bytes], reading: Reading) -> Image.Image | Tensor:
    if reading.plain and not is_array_file(file):
        return _picture(file, reading)
    values = stored_values(file, reading.channels, reading.limits)
    return reading.of_values(values)


def _picture(file: IO[bytes], reading: Reading) -> Image.Image:
    """A file as RGB by Pillow; a TIFF that Pillow does not know, by its bands."""
    if is_deep_png(file):
        values = opaque(deep_png(file, reading.limits), 3)
        return with_range(Image.fromarray(eight_bits(np.repeat(values, 3 // values.shape[2], axis=2))), values)
    try:
        with picture(file, reading.limits) as opened:
            return to_rgb(opened)
    except (Image.DecompressionBombError, UnreadableImage):
        raise
    except Exception as error:  # as in read
        if "MAX_TEXT" in str(error):
            file.seek(0)
            with picture(BytesIO(without_text(file.read())), reading.limits) as opened:
                return to_rgb(opened)
        if not is_tiff_file(file):
            raise
        try:
            values = stored_values(file, None, reading.limits)
        except UnreadableImage as other:
            raise (other if "max_" in str(other) else error) from None
        made = reading.of_values(values)
        assert isinstance(made, Image.Image)  # of three channels
        return made


def read_header(file: IO[bytes], limits: Limits) -> None:
    """Only recognise the image in an open file, without decoding it; raises `UnreadableImage`."""
    if is_array_file(file):
        return
    try:
        with recognised(file, limits) as made:
            limits.check(*made.size)
    except Exception as error:  # as in read_image
        raise UnreadableImage(reason(error)) from error


def reason(error: Exception) -> str:
    """Pillow's complaint without the address of the buffer in it, which would differ from run to run."""
    text = str(error) or type(error).__name__
    if too_large := re.search(r"Image size \((\d+) pixels\) exceeds limit", text):
        return (
            f"it has {too_large[1]} pixels, more than Pillow reads unasked; allow it with max_pixels = {too_large[1]}"
        )
    if "cannot identify image file" in text:
        return f"not an image of a format that is read ({', '.join(known_formats())})"
    return text


def to_rgb(image: Image.Image) -> Image.Image:
    """`image`, of any mode, as RGB with eight bits per channel, upright and opaque."""
    image = upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        return with_range(Image.fromarray(eight_bits(values)).convert("RGB"), values)
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


def as_eight_bits(images: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """A stack of images (N, H, W, ...) as eight bits, one range for all of it; raises `DataError` naming `name`."""
    try:
        return eight_bits(images)
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
