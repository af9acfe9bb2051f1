"""Looking at every image and every class before the first step, so that what is wrong is said then, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from vpeft.data.images import UnreadableImage, image_suffixes, read_header
from vpeft.data.items import Item, SplitName, digest
from vpeft.data.problems import DataError, Problems

Depth = Literal["decode", "header", "none"]

# Decoding releases the interpreter lock; more threads than this only queue for the disk.
_THREADS = 8
_PORTION = 256


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """What looking at one image gave: the sha256 of its content ("" if not read), or what is wrong with it."""

    item: Item
    content: str = ""
    missing: bool = False
    unreadable: str = ""
    image: Image.Image | None = None


def look(item: Item, depth: Depth, *, keep: bool = False) -> CheckedImage:
    """Look at one image as deep as asked; `keep` returns the decoded image too."""
    picture = item.picture
    if picture.file is not None and not picture.file.is_file():
        return CheckedImage(item, missing=True)
    if depth == "none":
        return CheckedImage(item)
    try:
        content = picture.content()
        if depth == "decode":
            image = picture.decode(content)
            return CheckedImage(item, digest(content), image=image if keep else None)
        if picture.file is not None:
            read_header(content)
        return CheckedImage(item, digest(content))
    except (UnreadableImage, OSError) as error:
        # The name is said beside it already.
        return CheckedImage(item, unreadable=str(error).removeprefix("an image in memory: "))


def look_at_all(items: Sequence[Item], depth: Depth, *, keep: bool = False) -> Iterable[CheckedImage]:
    """`look` at all items, in order; files in threads, other people's data sets not, since few of them allow it."""
    image_suffixes()  # loads Pillow's plugins once, before the threads would
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        # In portions, so that decoded images do not pile up ahead of whoever takes them.
        for start in range(0, len(items), _PORTION):
            portion = items[start : start + _PORTION]
            read = map if any(item.picture.file is None for item in portion) else pool.map
            yield from read(lambda item: look(item, depth, keep=keep), portion)


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


def compare_classes(
    splits: Mapping[SplitName, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
) -> None:
    """Note classes that no training image shows; raise `DataError` when fewer than two classes are left."""
    for label in dict.fromkeys(stated):
        if label not in labels:
            problems.add("empty_class", label)
    of_split = {split: {item.label for item in items} for split, items in splits.items()}
    for label in labels:
        if label not in of_split.get("train", set()):
            where = [split for split, seen in of_split.items() if label in seen]
            problems.add("unseen_class", label, f"only in {' and '.join(where)}")
    if len(labels) < 2:
        found = f"one class, {labels[0]!r}" if labels else "no class"
        raise DataError(
            f"The data holds {found}; at least two are needed to learn to tell them apart. "
            "A folder needs one sub-folder per class; a list needs one label per line."
        )
