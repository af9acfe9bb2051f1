"""The proof of a copy of VTAB-1k: each image is counted, read and hashed, and compared with other people's digests.

What is wrong is a fault, with its kind, split and name. Images that are the same as another one are notes: published
sets hold a few.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict

from vpeft.atomic import write_text
from vpeft.data.decoding import MissingImage
from vpeft.data.images import UnreadableImage
from vpeft.data.items import Picture, digest, is_whole_number
from vpeft.data.problems import DataError
from vpeft.data.set_facts import SetFacts
from vpeft.data.vtab1k.facts import FACTS
from vpeft.data.vtab1k.layout import (
    DIGESTS,
    TEST,
    TRAIN,
    VAL,
    WHOLE,
    ListedImage,
    find_task,
    read_list,
    task_names,
    tasks_root,
)
from vpeft.guarded import MEBI, read_bytes, text_of

Kind = Literal[
    "no_task", "no_list", "count", "repeated", "outside", "missing", "unreadable", "label", "whole", "changed", "other"
]
TITLES: dict[str, str] = {
    "no_task": "tasks are not there",
    "no_list": "lists are not there",
    "count": "splits have another number of images than is published",
    "repeated": "lines are in a list twice",
    "outside": "names lead out of the task's folder",
    "missing": "images are listed and not there",
    "unreadable": "images cannot be read",
    "label": "labels are not among the classes",
    "whole": "images differ between train800val200 and the lists that it joins",
    "changed": "images differ from the stated digests",
    "other": "names or labels are not those that the digests state",
}
_THREADS = 8
_SIDE = 8  # of the small grey copy by which an image is recognised after lossy coding
_HEADER = ("split", "name", "label", "file", "pixels", "size", "thumbnail")
_MOST_BYTES = 512 * MEBI  # the longest table, of 74,728 images of dSprites, has 25 MiB


class Fault(BaseModel):
    """One thing that is wrong in a copy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    split: str = ""
    name: str = ""
    detail: str = ""

    def __str__(self) -> str:
        place = "/".join(part for part in (self.split, self.name) if part)
        return f"{place} ({self.detail})" if self.detail else place


class TaskProof(BaseModel):
    """What was found of one task.

    Attributes:
        counts: images by split, those that could be read.
        digests: of each split, the sha256 of its lines of name, label and file digest, sorted by name.
        compared: whether there were digests to compare with.
        distinct: different images among the 1,000.
        duplicates: images that are the same as one before, of the same or another split.
        faults: what is wrong; none where the task is proved.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    compared: bool = False
    counts: dict[str, int] = {}
    digests: dict[str, str] = {}
    distinct: int = 0
    duplicates: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    @property
    def proved(self) -> bool:
        return not self.faults


class Proof(BaseModel):
    """What was found of all tasks that were asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[TaskProof, ...]

    @property
    def proved(self) -> bool:
        return all(task.proved for task in self.tasks)

    def sentences(self, shown: int = 5) -> Iterator[str]:
        """What is wrong, for each task and kind: how often, and the first few names."""
        for task in self.tasks:
            for kind, count in Counter(fault.kind for fault in task.faults).items():
                named = [str(fault) for fault in task.faults if fault.kind == kind]
                more = f"; and {count - shown} more" if count > shown else ""
                yield f"{task.task}: {count} {TITLES[kind]}: {'; '.join(named[:shown])}{more}"
            if task.duplicates:
                more = f"; and {len(task.duplicates) - shown} more" if len(task.duplicates) > shown else ""
                yield (
                    f"{task.task}: {len(task.duplicates)} images are copies of another one (no fault):"
                    f" {'; '.join(task.duplicates[:shown])}{more}"
                )


@dataclass(frozen=True, slots=True)
class ImageDigest:
    """What an image is recognised by.

    Attributes:
        file: sha256 of its bytes.
        pixels: sha256 of its height, width and RGB values.
        size: height and width.
        thumbnail: 64 grey values, an 8 x 8 copy.
    """

    file: str
    pixels: str
    size: tuple[int, int]
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class KnownImage:
    """A line of a table of digests."""

    listed: ListedImage
    known: ImageDigest


def digest_of(picture: Picture) -> ImageDigest:
    """Read an image once and hash it. Raises `UnreadableImage`."""
    content = picture.content()
    return ImageDigest(digest(content), *describe(picture.decode(content)))


def describe(image: Image.Image) -> tuple[str, tuple[int, int], bytes]:
    """The sha256 of the pixels, (height, width), and the thumbnail of an RGB image."""
    width, height = image.size
    pixels = hashlib.sha256(f"{height} {width} ".encode() + image.tobytes()).hexdigest()
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return pixels, (height, width), small.tobytes()


def prove(
    root: Path,
    tasks: Sequence[str] = (),
    *,
    lists: Path | None = None,
    facts: Mapping[str, SetFacts] = FACTS,
    proved: Callable[[TaskProof], None] | None = None,
) -> Proof:
    """Read all images of a copy, and write their digests as TASK/digests.tsv where the task has no fault.

    Args:
        root: the folder of the copy, or one around it.
        tasks: only these.
        lists: a folder with TASK/digests.tsv of another copy to compare with; by default those that an earlier proof
            wrote, so that what has changed since is named.
        facts: the published numbers.
        proved: called with each task when it is done; a whole copy takes minutes.

    Raises:
        DataError: no task is there, an unknown one is asked for, or a list cannot be read.
    """
    names = task_names(tasks)
    place = tasks_root(root)
    found = []
    for name in names:
        folder = find_task(place, name)
        if folder is None:
            found.append(TaskProof(task=name, faults=(Fault(kind="no_task", name=name),)))
        else:
            known = root if lists is None and (folder / DIGESTS).is_file() else lists
            stated = None if known is None else read_digests(known, name)
            found.append(_prove_task(name, folder, facts[name], stated))
        if proved is not None:
            proved(found[-1])
    return Proof(tasks=tuple(found))


def read_digests(root: Path, task: str) -> list[KnownImage]:
    """The table of digests of a task below `root`. Raises `DataError` where there is none, or a line is wrong."""
    folder = find_task(tasks_root(root), task)
    path = None if folder is None else folder / DIGESTS
    if path is None or not path.is_file():
        raise DataError(
            f"{root} has no {task}/{DIGESTS}. vpeft data vtab1k writes one for each task of a copy that it proves."
        )
    lines = text_of(read_bytes(path, str(path), DataError, _MOST_BYTES), str(path), DataError).splitlines()
    if not lines or tuple(lines[0].split("\t")) != _HEADER:
        raise DataError(f"{path} does not begin with the columns {', '.join(_HEADER)}.")
    return [_known(path, number, line) for number, line in enumerate(lines[1:], start=2)]


def write_digests(folder: Path, known: Iterable[KnownImage]) -> None:
    """Write the table of digests of a task."""
    rows = ["\t".join(_HEADER)]
    for one in known:
        image, seen = one.listed, one.known
        thumbnail = base64.b64encode(seen.thumbnail).decode()
        size = f"{seen.size[0]}x{seen.size[1]}"
        rows.append("\t".join((image.split, image.name, str(image.label), seen.file, seen.pixels, size, thumbnail)))
    write_text(folder / DIGESTS, "\n".join(rows) + "\n")


def _known(path: Path, number: int, line: str) -> KnownImage:
    cells = line.split("\t")
    try:
        split, name, label, file, pixels, size, thumbnail = cells
        if not is_whole_number(label) or len(file) != 64 or len(pixels) != 64:
            raise ValueError
        height, _, width = size.partition("x")
        grey = base64.b64decode(thumbnail, validate=True)
        if len(grey) != _SIDE * _SIDE:
            raise ValueError
        return KnownImage(
            ListedImage(split, name, int(label)), ImageDigest(file, pixels, (int(height), int(width)), grey)
        )
    except ValueError:
        raise DataError(f"{path}, line {number}, does not hold {', '.join(_HEADER)}.") from None


def _prove_task(task: str, folder: Path, facts: SetFacts, stated: list[KnownImage] | None) -> TaskProof:
    faults: list[Fault] = []
    listed: dict[str, list[ListedImage]] = {}
    published = {TRAIN: facts.train, VAL: facts.val, TEST: facts.test}
    for split, number in published.items():
        lines = read_list(folder, split)
        if lines is None:
            faults.append(Fault(kind="no_list", split=split, name=f"{split}.txt"))
            continue
        if number is not None and len(lines) != number:
            faults.append(Fault(kind="count", split=split, detail=f"{len(lines)}, published: {number}"))
        listed[split] = lines
    whole = read_list(folder, WHOLE)
    everything = [image for lines in listed.values() for image in lines] + (whole or [])
    faults += _faults_of_lines(everything, facts.classes)
    seen, wrong = _look(folder, [image for image in everything if image.inside])
    faults += wrong
    if whole is not None and TRAIN in listed and VAL in listed:
        faults += _faults_of_whole([*listed[TRAIN], *listed[VAL]], whole, seen)
    if stated is not None:
        faults += _compared(listed, seen, stated)
    read = {split: [image for image in lines if image.name in seen] for split, lines in listed.items()}
    if not faults:
        write_digests(folder, [KnownImage(image, seen[image.name]) for lines in read.values() for image in lines])
    return TaskProof(
        task=task,
        compared=stated is not None,
        counts={split: len(lines) for split, lines in read.items()},
        digests={split: _digest_of_split(lines, seen) for split, lines in read.items()},
        distinct=len({seen[image.name].pixels for split in (TRAIN, VAL) for image in read.get(split, ())}),
        duplicates=tuple(_duplicates(read, seen)),
        faults=tuple(faults),
    )


def _faults_of_lines(images: Sequence[ListedImage], classes: int) -> Iterator[Fault]:
    lines: set[tuple[str, str]] = set()
    for image in images:
        if (image.split, image.name) in lines:
            yield Fault(kind="repeated", split=image.split, name=image.name)
        lines.add((image.split, image.name))
        if not image.inside:
            yield Fault(kind="outside", split=image.split, name=image.name)
        if not 0 <= image.label < classes:
            detail = f"{image.label}, not 0 to {classes - 1}"
            yield Fault(kind="label", split=image.split, name=image.name, detail=detail)


def _look(folder: Path, images: Sequence[ListedImage]) -> tuple[dict[str, ImageDigest], list[Fault]]:
    """The digests of all images by name, each read once, and what could not be read."""
    first = {image.name: image for image in images}
    found: dict[str, ImageDigest] = {}
    faults: list[Fault] = []

    def one(image: ListedImage) -> ImageDigest | Fault:
        try:
            return digest_of(image.picture(folder))
        except MissingImage:
            return Fault(kind="missing", split=image.split, name=image.name)
        except (UnreadableImage, OSError) as error:
            said = str(error).removeprefix(f"{folder / image.name}: ")
            return Fault(kind="unreadable", split=image.split, name=image.name, detail=said)

    with ThreadPoolExecutor(_THREADS) as pool:
        for image, seen in zip(first.values(), pool.map(one, first.values()), strict=True):
            if isinstance(seen, Fault):
                faults.append(seen)
            else:
                found[image.name] = seen
    return found, faults


def _faults_of_whole(
    parts: Sequence[ListedImage], whole: Sequence[ListedImage], seen: Mapping[str, ImageDigest]
) -> Iterator[Fault]:
    """The joined list holds the same pixels with the same labels; its files may be copies under other names."""

    def counted(images: Sequence[ListedImage]) -> Counter[tuple[str, int]]:
        return Counter((seen[image.name].pixels, image.label) for image in images if image.name in seen)

    have, want = counted(whole), counted(parts)
    for one, extra in ((WHOLE, have - want), ("train800 and val200", want - have)):
        named = {(seen[i.name].pixels, i.label): i for i in (*whole, *parts) if i.name in seen}
        for key in extra:
            yield Fault(kind="whole", split=named[key].split, name=named[key].name, detail=f"only in {one}")


def _compared(
    listed: Mapping[str, Sequence[ListedImage]], seen: Mapping[str, ImageDigest], stated: Sequence[KnownImage]
) -> Iterator[Fault]:
    """What differs from the digests of another copy: an image, its label, or that it is there at all."""
    here = {(image.split, image.name): image for lines in listed.values() for image in lines}
    there = {(known.listed.split, known.listed.name): known for known in stated}
    for (split, name), known in there.items():
        image = here.get((split, name))
        if image is None:
            yield Fault(kind="other", split=split, name=name, detail="not in the list")
        elif image.label != known.listed.label:
            yield Fault(kind="other", split=split, name=name, detail=f"label {image.label}, not {known.listed.label}")
        elif name in seen and seen[name].file != known.known.file:
            same = seen[name].pixels == known.known.pixels
            yield Fault(kind="changed", split=split, name=name, detail="the same pixels, other bytes" if same else "")
    for split, name in here.keys() - there.keys():
        yield Fault(kind="other", split=split, name=name, detail="not among the digests")


def _digest_of_split(images: Sequence[ListedImage], seen: Mapping[str, ImageDigest]) -> str:
    lines = sorted(f"{image.name}\t{image.label}\t{seen[image.name].file}\n" for image in images)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _duplicates(read: Mapping[str, Sequence[ListedImage]], seen: Mapping[str, ImageDigest]) -> Iterator[str]:
    first: dict[str, ListedImage] = {}
    for lines in read.values():
        for image in lines:
            before = first.setdefault(seen[image.name].pixels, image)
            if before is not image:
                yield f"{image.split}/{image.name} = {before.split}/{before.name}"
