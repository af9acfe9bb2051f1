"""The images of VTAB-1k in full data sets, found by what they hold.

Other copies of a data set have other file names and another order, so an image is looked for by its content, in this
order: the bytes of its file; its pixels; its pixels after JPEG coding as NOAH's script codes them (Pillow, quality 75);
and, for JPEG files, which decoders read with differences of a grey level or two, a small grey copy that fits one image
alone. An image that fits several different ones in this last way is ambiguous, and is not taken.
"""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from vpeft.atomic import write_bytes
from vpeft.data.config import DataConfig
from vpeft.data.images import UnreadableImage, files_below, pictures_among
from vpeft.data.items import SPLITS, FilePicture, Item, Picture, digest
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import find_source
from vpeft.data.vtab1k.layout import WHOLE, ListedImage, write_list
from vpeft.data.vtab1k.proof import Fault, ImageDigest, KnownImage, describe, read_digests

WAYS = ("file", "pixels", "jpeg", "near")
_NOAH_QUALITY = 75
# Grey levels between two decodings of a JPEG file, as averages of an 8 x 8 copy.
_NEAR = 2
_JPEG_START = b"\xff\xd8"
_THREADS = 8
_AHEAD = 256  # images that are read at the same time


class Found(BaseModel):
    """What was found of one task in a full data set.

    Attributes:
        looked_at: images of the full set.
        found: how many images by which way.
        faults: images that are missing, or ambiguous.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    looked_at: int
    found: dict[str, int]
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """An image of the full set, and all by which it may be recognised.

    Attributes:
        jpeg_pixels: the digest of its pixels after NOAH's coding.
        lossy: whether its file is JPEG, which other decoders read a little differently.
    """

    item: Item
    known: ImageDigest
    jpeg_pixels: str
    lossy: bool


def full_set(source: str, download: bool = False, root: Path | None = None) -> list[Item]:
    """All images of a full data set, whatever their labels.

    Args:
        source: a folder, in which all image files count; or what `vpeft data check` reads: 'torchvision:CIFAR100',
            'hf:owner/name', a table.
        download: whether a named set may be downloaded.
        root: where named sets are kept.
    """
    config = DataConfig(source=source, download=download, root=root)
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(pictures_among(files_below(folder).files))
        return [Item(path.relative_to(folder).as_posix(), "", FilePicture(path)) for path in files]
    listing = find_source(config).read(config)
    return [*listing.whole, *(item for split in SPLITS for item in listing.splits.get(split, ()))]


def find_task_in(items: Sequence[Item], lists: Path, task: str, out: Path) -> Found:
    """Find the images of a task, and write them in the layout of VTAB-1k, byte by byte as the full set holds them.

    Images of arrays are written as PNG.

    Args:
        items: the full data set.
        lists: a folder with TASK/digests.tsv.
        task: its name.
        out: TASK/ is made in it; lists and images are written even where some are missing.

    Raises:
        DataError: there is no table of digests, or the task's folder exists.
    """
    wanted = read_digests(lists, task)
    folder = out / task
    if folder.exists():
        raise DataError(f"{folder} exists already. Name another folder, or remove it.")
    seen = list(_look(items))
    chosen, faults = _match(wanted, seen)
    names = {place: _write(folder, wanted[place].listed, item) for place, (item, _) in chosen.items()}
    splits: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for place, known in enumerate(wanted):
        if place in names:
            splits[known.listed.split].append((names[place], known.listed.label))
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        write_list(folder, split, lines)
    write_list(folder, WHOLE, [line for split, lines in splits.items() if split != "test" for line in lines])
    ways = Counter(way for _, way in chosen.values())
    return Found(
        task=task, looked_at=len(seen), found={way: ways[way] for way in WAYS if ways[way]}, faults=tuple(faults)
    )


def _look(items: Iterable[Item]) -> Iterator[_Seen]:
    """Read the full set; images that cannot be read are passed over, since nothing can be found in them."""
    rest = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while part := list(islice(rest, _AHEAD)):
            # Images of other libraries' sets one by one, since few of them allow threads.
            alone = any(item.picture.file is None for item in part)
            yield from (seen for seen in (map if alone else pool.map)(_seen, part) if seen is not None)


def _seen(item: Item) -> _Seen | None:
    try:
        content = item.picture.content()
        image = item.picture.decode(content if item.picture.file is not None else None)
    except (UnreadableImage, OSError):
        return None
    coded = io.BytesIO()
    image.save(coded, format="JPEG", quality=_NOAH_QUALITY)
    again = Image.open(coded).convert("RGB")
    known = ImageDigest(digest(content), *describe(image))
    return _Seen(item, known, describe(again)[0], content.startswith(_JPEG_START))


def _match(wanted: Sequence[KnownImage], seen: Sequence[_Seen]) -> tuple[dict[int, tuple[Item, str]], list[Fault]]:
    """For each place in `wanted`, the image and the way by which it was found; and those that were not."""
    by_file = {one.known.file: one.item for one in reversed(seen)}
    by_pixels = {one.known.pixels: one.item for one in reversed(seen)}
    by_jpeg = {one.jpeg_pixels: one.item for one in reversed(seen)}
    near = _Thumbnails([one for one in seen if one.lossy])
    chosen: dict[int, tuple[Item, str]] = {}
    faults: list[Fault] = []
    for place, image in enumerate(wanted):
        known = image.known
        exact = {"file": by_file.get(known.file), "pixels": by_pixels.get(known.pixels)}
        exact["jpeg"] = by_jpeg.get(known.pixels)
        found = next(((item, way) for way, item in exact.items() if item is not None), None)
        if found is None:
            alike = near.fitting(known)
            if len({one.known.pixels for one in alike}) == 1:
                found = alike[0].item, "near"
        if found is not None:
            chosen[place] = found
        else:
            detail = f"{len(alike)} images of the full set are alike" if alike else "in no image of the full set"
            faults.append(Fault(kind="missing", split=image.listed.split, name=image.listed.name, detail=detail))
    return chosen, faults


class _Thumbnails:
    """Small grey copies of the full set, by the size of their images, sorted by their mean."""

    def __init__(self, seen: Sequence[_Seen]) -> None:
        groups: dict[tuple[int, int], list[_Seen]] = defaultdict(list)
        for one in seen:
            groups[one.known.size].append(one)
        self._groups: dict[tuple[int, int], tuple[list[_Seen], NDArray[np.int16], NDArray[np.float64]]] = {}
        for size, members in groups.items():
            grey = np.stack([_grey(one.known) for one in members])
            order = np.argsort(grey.mean(axis=1), kind="stable")
            grey = grey[order]
            self._groups[size] = ([members[place] for place in order], grey, grey.mean(axis=1))

    def fitting(self, known: ImageDigest) -> list[_Seen]:
        """The images of the same size whose copies differ by `_NEAR` grey levels at most, everywhere."""
        if known.size not in self._groups:
            return []
        members, grey, means = self._groups[known.size]
        asked = _grey(known)
        low, high = np.searchsorted(means, [asked.mean() - _NEAR, asked.mean() + _NEAR], side="left")
        close = np.abs(grey[low : high + 1] - asked).max(axis=1, initial=0) <= _NEAR
        return [members[low + place] for place in np.flatnonzero(close)]


def _grey(known: ImageDigest) -> NDArray[np.int16]:
    return np.frombuffer(known.thumbnail, dtype=np.uint8).astype(np.int16)


def _write(folder: Path, listed: ListedImage, item: Item) -> str:
    """Write an image below the folder of a task; its name there."""
    stem = PurePosixPath("images", listed.split, PurePosixPath(listed.name).stem)
    picture: Picture = item.picture
    if picture.file is not None:
        name = str(stem) + picture.file.suffix.lower()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(picture.file, path)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(picture.file, path)
        return name
    coded = io.BytesIO()
    picture.decode().save(coded, format="PNG")
    name = f"{stem}.png"
    write_bytes(folder / name, coded.getvalue())
    return name
