"""Looking at every image and every class before the first step, so that what is wrong is said then, by name."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from vpeft.data.clips.clip import ClipNote, ClipPicture
from vpeft.data.decoding import MissingImage, Stamp, opened_image
from vpeft.data.images import UnreadableImage, image_suffixes, read, read_header
from vpeft.data.items import FilePicture, Item, Picture, SplitName, digest
from vpeft.data.on_pixels import CheckDepth, CheckedTarget, OnPixels
from vpeft.data.pixels import RGB, Reading, ValueRange, value_range
from vpeft.data.problems import DataError, Problems
from vpeft.data.steps import height_and_width

# Decoding releases the interpreter lock; more threads than this only queue for the disk.
_THREADS = 8
# Images that are looked at before the first of them is asked for.
_AHEAD = 32
# Larger decoded images are decoded again when they are needed, so that those that wait here need 2 GiB at most.
_KEPT_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """What looking at one image gave.

    Attributes:
        item: what was looked at, with its target mended where a rule says how; its file carries the stamp by which a
            later change is noticed.
        content: sha256 of the image's content, "" if not read.
        missing: the file is not there.
        unreadable: what is wrong with it.
        image: the decoded image, where it is to be kept.
        values: the range of its stored values, where they have more than eight bits.
        on_pixels: what looking at a target on the image's pixels gave.
        notes: of a clip, what is worth saying though it is used.
    """

    item: Item
    content: str = ""
    missing: bool = False
    unreadable: str = ""
    image: Any = None
    values: ValueRange | None = None
    on_pixels: CheckedTarget | None = None
    notes: tuple[ClipNote, ...] = ()


def look(
    item: Item, depth: CheckDepth, *, keep: bool = False, reading: Reading = RGB, classes: int | None = None
) -> CheckedImage:
    """Look at one image, and at its target where that lies on its pixels, as deep as asked.

    Args:
        item: the image.
        depth: decode it, read its header, or only see that it is there.
        keep: return the decoded image too.
        reading: how it is decoded.
        classes: how many classes the source names for masks; None takes all numbers that are there, and then masks are
            read whatever the depth.
    """
    size: tuple[int, int] | None = None
    if isinstance(item.picture, ClipPicture):
        return _looked_at_clip(item, item.picture, depth, reading)
    try:
        picture, content, image = _looked(item.picture, depth, reading)
    except MissingImage:
        return CheckedImage(item, missing=True)
    except (UnreadableImage, OSError) as error:
        # The name is said beside it already.
        return CheckedImage(item, unreadable=str(error).removeprefix("an image in memory: "))
    item = replace(item, picture=picture)
    checked = CheckedImage(item, content)
    if image is not None:
        size = height_and_width(image)
        needed = image.nbytes if isinstance(image, Tensor) else 3 * size[0] * size[1]
        kept = image if keep and needed <= _KEPT_BYTES else None
        checked = replace(checked, image=kept, values=value_range(image))
    if not isinstance(item.target, OnPixels):
        return checked
    target = _stamped(item.target).checked(depth, size, classes)
    return replace(checked, item=replace(item, target=target.target), on_pixels=target, unreadable=target.unreadable)


def _looked_at_clip(item: Item, clip: ClipPicture, depth: CheckDepth, reading: Reading) -> CheckedImage:
    try:
        seen = clip.checked(depth, reading.limits)
    except MissingImage:
        return CheckedImage(item, missing=True)
    except (UnreadableImage, OSError) as error:
        return CheckedImage(item, unreadable=str(error))
    return CheckedImage(replace(item, picture=seen.picture), seen.content, notes=seen.notes)


def _stamped(target: OnPixels) -> OnPixels:
    """The target with the stamp of its file, by which a later change is noticed; its own check says what is wrong."""
    made: Any = target
    picture = getattr(made, "picture", None)
    if isinstance(picture, FilePicture):
        with suppress(UnreadableImage):
            return cast(OnPixels, replace(made, picture=picture.stamped()))
    return target


def _looked(picture: Picture, depth: CheckDepth, reading: Reading) -> tuple[Picture, str, Any]:
    """The picture with its stamp, the sha256 of its content, and the decoded image, as deep as asked."""
    if not isinstance(picture, FilePicture):
        content = picture.content() if depth != "none" else b""
        image = picture.decode(content, reading) if depth == "decode" else None
        return picture, digest(content) if depth != "none" else "", image
    with opened_image(picture.file, reading.limits) as file:
        stamp, content_digest, image = Stamp.of(file), "", None
        if depth != "none":
            content_digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it has readinto
        if depth == "decode":
            image = read(file, reading)
        elif depth == "header":
            read_header(file, reading.limits)
        if Stamp.of(file) != stamp:
            raise UnreadableImage("it changed while it was checked")
    return replace(picture, stamp=stamp), content_digest, image


def look_at_all(
    items: Sequence[Item], depth: CheckDepth, *, keep: bool = False, reading: Reading = RGB, classes: int | None = None
) -> Iterator[CheckedImage]:
    """`look` at all items, in order; files in threads, other people's data sets not, since few of them allow it.

    What is decoded at the same time is bounded by the memory pool of `decoding.py`.
    """
    image_suffixes()  # loads Pillow's plugins once, before the threads would
    waiting: deque[Future[CheckedImage]] = deque()
    pool = ThreadPoolExecutor(max_workers=_THREADS)
    try:
        for item in items:
            alone = item.picture.file is None
            while waiting and (alone or len(waiting) >= _AHEAD):
                yield waiting.popleft().result()
            if alone:
                yield look(item, depth, keep=keep, reading=reading, classes=classes)
            else:
                waiting.append(pool.submit(look, item, depth, keep=keep, reading=reading, classes=classes))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def too_many(problems: Problems, total: int, allowed: float, source: str) -> None:
    """Raise `DataError` when more than the share `allowed` of `total` images is missing or unreadable."""
    bad = problems.of("missing", "unreadable", "unreadable_clip")
    if not bad or len(bad) <= allowed * total:
        return
    kinds = dict.fromkeys(problem.kind for problem in bad)
    details = "\n".join(f"  {problems.sentence(kind)}." for kind in kinds)
    raise DataError(
        f"{source}: {len(bad)} of {total} images ({len(bad) / total:.1%}) cannot be used; the limit is {allowed:.1%}.\n"
        f"{details}\nMend or remove them, or raise max_unreadable."
    )


def most_fit(boxes: Iterable[tuple[int, int, int]], source: str) -> None:
    """Raise `DataError` when most boxes leave their image or have no area: their four numbers mean something else.

    `boxes` are, for each image, the numbers that `CheckedTarget.boxes` describes.
    """
    counts = [sum(column) for column in zip(*boxes, strict=True)]
    if not counts or 2 * counts[1] <= counts[0]:
        return
    total, wrong, otherwise = counts
    likely = " That is what they mean here, most likely: state the other box_format." if 2 * otherwise > wrong else ""
    raise DataError(
        f"{source}: {wrong} of {total} boxes leave their image or have no area, {otherwise} of which would fit if left,"
        f" top, width, height were left, top, right, bottom, or the other way round.{likely}"
    )


def compare_splits(splits: Mapping[SplitName, Sequence[Item]], content: Mapping[str, str], problems: Problems) -> None:
    """Note images whose content is in more than one split, or under more than one label."""
    homes: dict[str, dict[SplitName, Item]] = {}
    labels: dict[str, Item] = {}
    for split, items in splits.items():
        for item in items:
            key = content.get(item.name, "")
            if not key:
                continue
            home = homes.setdefault(key, {})
            for other, first in home.items():
                if other != split:
                    problems.add("duplicate", f"{first.name} in {other}", f"the same as {item.name} in {split}")
                    break
            home.setdefault(split, item)
            first = labels.setdefault(key, item)
            if first.label != item.label:
                problems.add("contradiction", f"{first.name} is {first.label!r}", f"{item.name} is {item.label!r}")
