"""Looking at every image and every class before the first step, so that what is wrong is said then, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from vpeft.data.images import UnreadableImage, image_suffixes, read_header
from vpeft.data.items import Item, SplitName, digest
from vpeft.data.pixels import RGB, Reading, ValueRange, value_range
from vpeft.data.problems import DataError, Kind, Problems
from vpeft.data.steps import height_and_width
from vpeft.data.targets import IGNORED, Mask

Depth = Literal["decode", "header", "none"]

# Decoding releases the interpreter lock; more threads than this only queue for the disk.
_THREADS = 8
_PORTION = 256


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """What looking at one image gave.

    Attributes:
        item: what was looked at; of a mask that was read it knows the classes.
        content: sha256 of the image's content, "" if not read.
        missing: the file is not there.
        unreadable: what is wrong with it.
        image: the decoded image, where it is to be kept.
        values: the range of its stored values, where they have more than eight bits.
        mask_content: sha256 of the mask's content, "" if there is none or it was not read.
        mask_fault: what is wrong with the mask: the kind of problem, and the detail.
    """

    item: Item
    content: str = ""
    missing: bool = False
    unreadable: str = ""
    image: Any = None
    values: ValueRange | None = None
    mask_content: str = ""
    mask_fault: tuple[Kind, str] | None = None


def look(
    item: Item, depth: Depth, *, keep: bool = False, reading: Reading = RGB, classes: int | None = None
) -> CheckedImage:
    """Look at one image, and its mask, as deep as asked.

    Args:
        item: the image.
        depth: decode it, read its header, or only see that it is there.
        keep: return the decoded image too.
        reading: how it is decoded.
        classes: how many classes the source names for masks; None takes all numbers that are there, and then masks are
            read whatever the depth.
    """
    picture = item.picture
    if picture.file is not None and not picture.file.is_file():
        return CheckedImage(item, missing=True)
    checked = CheckedImage(item)
    size: tuple[int, int] | None = None
    try:
        if depth != "none":
            content = picture.content()
            checked = replace(checked, content=digest(content))
        if depth == "decode":
            image = picture.decode(content, reading)
            size = height_and_width(image)
            checked = replace(checked, image=image if keep else None, values=value_range(image))
        elif depth == "header" and picture.file is not None:
            read_header(content)
    except (UnreadableImage, OSError) as error:
        # The name is said beside it already.
        return CheckedImage(item, unreadable=str(error).removeprefix("an image in memory: "))
    return checked if not isinstance(item.target, Mask) else _look_at_mask(checked, item.target, depth, size, classes)


def _look_at_mask(
    checked: CheckedImage, mask: Mask, depth: Depth, size: tuple[int, int] | None, classes: int | None
) -> CheckedImage:
    file = mask.picture.file
    if file is not None and not file.is_file():
        return replace(checked, mask_fault=("missing_mask", f"{file.name} is not there"))
    try:
        if depth != "none":
            checked = replace(checked, mask_content=digest(mask.picture.content()))
        if depth == "decode" or classes is None:
            numbers = mask.picture.numbers()
            if size is not None and numbers.shape != size:
                detail = f"{numbers.shape[1]} x {numbers.shape[0]} for an image of {size[1]} x {size[0]}"
                return replace(checked, mask_fault=("mask_size", detail))
            mask = mask.looked()
            wrong = [one for one in mask.classes or () if one < 0 or (classes is not None and one >= classes)]
            if wrong or max(mask.classes or (0,)) > IGNORED:
                shown = ", ".join(map(str, wrong[:5] or [max(mask.classes or (0,))]))
                named = (
                    f"there are {classes} classes, 0 to {classes - 1}" if classes else f"0 to {IGNORED - 1} are classes"
                )
                return replace(checked, mask_fault=("mask_value", f"it holds {shown}; {named}"))
    except (UnreadableImage, OSError) as error:
        return replace(checked, unreadable=f"its mask: {error}")
    return replace(checked, item=replace(checked.item, target=mask))


def look_at_all(
    items: Sequence[Item], depth: Depth, *, keep: bool = False, reading: Reading = RGB, classes: int | None = None
) -> Iterable[CheckedImage]:
    """`look` at all items, in order; files in threads, other people's data sets not, since few of them allow it."""
    image_suffixes()  # loads Pillow's plugins once, before the threads would
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        # In portions, so that decoded images do not pile up ahead of whoever takes them.
        for start in range(0, len(items), _PORTION):
            portion = items[start : start + _PORTION]
            run = map if any(item.picture.file is None for item in portion) else pool.map
            yield from run(lambda item: look(item, depth, keep=keep, reading=reading, classes=classes), portion)


def too_many(problems: Problems, total: int, allowed: float, source: str) -> None:
    """Raise `DataError` when more than the share `allowed` of `total` images is missing or unreadable."""
    bad = problems.of("missing", "unreadable")
    if not bad or len(bad) <= allowed * total:
        return
    kinds = dict.fromkeys(problem.kind for problem in bad)
    details = "\n".join(f"  {problems.sentence(kind)}." for kind in kinds)
    raise DataError(
        f"{source}: {len(bad)} of {total} images ({len(bad) / total:.1%}) cannot be used; the limit is {allowed:.1%}.\n"
        f"{details}\nMend or remove them, or raise max_unreadable."
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
