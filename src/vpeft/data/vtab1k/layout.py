"""The layout in which VTAB-1k is passed on: TASK/train800.txt, val200.txt, train800val200.txt, test.txt and images/."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vpeft.data.items import FilePicture, Item
from vpeft.data.problems import DataError
from vpeft.data.sources.vtab import listed_items
from vpeft.data.vtab1k.facts import ALIASES, FACTS
from vpeft.errors import nearest

# The lists by the name of their split; the last one is the first two together, and may be absent.
TRAIN, VAL, TEST, WHOLE = "train800", "val200", "test", "train800val200"
LISTS = (TRAIN, VAL, TEST, WHOLE)
DIGESTS = "digests.tsv"
# Folders around the tasks that an archive may have.
_DEEPEST = 3


@dataclass(frozen=True)
class ListedImage:
    """A line of a list: the split, the name below the task's folder, the class number."""

    split: str
    name: str
    label: int

    def picture(self, folder: Path) -> FilePicture:
        return FilePicture(folder / self.name)

    @property
    def inside(self) -> bool:
        """Whether the name stays in the task's folder."""
        path = PurePosixPath(self.name)
        return not path.is_absolute() and ".." not in path.parts


def task_names(asked: Sequence[str]) -> list[str]:
    """The tasks of these names, all where none is named. Raises `DataError` for an unknown one."""
    names = [ALIASES.get(name, name) for name in asked] or list(FACTS)
    for name in names:
        if name not in FACTS:
            raise DataError(f"VTAB-1k has no task {name!r}. {nearest(name, FACTS)}")
    return names


def tasks_root(folder: Path) -> Path:
    """The folder that holds the folders of tasks: `folder`, or one inside of it, as archives have them.

    Raises:
        DataError: no folder of a task with lists is there.
    """
    level = [folder]
    for _ in range(_DEEPEST):
        for one in level:
            if any(find_task(one, name) is not None for name in FACTS):
                return one
        level = [Path(entry.path) for one in level if one.is_dir() for entry in sorted_folders(one)]
    raise DataError(
        f"{folder} holds no task of VTAB-1k: a folder such as cifar with train800.txt, val200.txt and test.txt."
    )


def sorted_folders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.is_dir(follow_symlinks=False)), key=lambda one: one.name)


def find_task(root: Path, name: str) -> Path | None:
    """The folder of a task below `root`, under its name or another one in use; None where it is not there."""
    for known in (name, *(alias for alias, meant in ALIASES.items() if meant == name)):
        if any((root / known / f"{split}.txt").is_file() for split in LISTS) or (root / known / DIGESTS).is_file():
            return root / known
    return None


def read_list(folder: Path, split: str) -> list[ListedImage] | None:
    """The lines of one list; None where there is no such file. Raises `DataError` with the line of a mistake."""
    path = folder / f"{split}.txt"
    if not path.is_file():
        return None
    return [ListedImage(split, item.name, int(item.label)) for item in listed_items(path, folder)]


def write_list(folder: Path, split: str, lines: Iterable[tuple[str, int]]) -> None:
    """Write `name label` lines as TASK/SPLIT.txt."""
    (folder / f"{split}.txt").write_text("".join(f"{name} {label}\n" for name, label in lines), encoding="utf-8")


def as_item(image: ListedImage, folder: Path) -> Item:
    return Item(image.name, str(image.label), image.picture(folder))
