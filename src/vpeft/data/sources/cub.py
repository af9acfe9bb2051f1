"""CUB-200-2011 as it is distributed: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import short

_IMAGES, _CLASSES, _LABELS, _SPLIT = "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"


@source
class Cub:
    """200 kinds of birds. Split by images it is the official split of 5,994 and 5,794 images; split by classes the
    first half of the classes trains and the other is tested, 5,864 and 5,924 images, as in every paper on retrieval."""

    name = "cub"
    title = "CUB-200-2011: images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        return Claim.FORMAT if all((root / name).is_file() for name in (_IMAGES, _LABELS, _CLASSES)) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        classes = _table(root / _CLASSES)
        labels = _table(root / _LABELS)
        by_classes = config.split_by == "classes"
        official = {} if by_classes else _table(root / _SPLIT)
        listing = Listing(f"Expected: {self.title}.", labels=list(classes.values()))
        learnt = set(list(classes.values())[: (len(classes) + 1) // 2])
        for number, name in _table(root / _IMAGES).items():
            label = classes.get(labels.get(number, ""))
            if label is None:
                raise DataError(f"{root / _LABELS} gives image {number} ({short(name)}) no class of {_CLASSES}.")
            split: SplitName = "train" if label in learnt else "test"
            if not by_classes:
                if official.get(number) not in ("0", "1"):
                    raise DataError(f"{root / _SPLIT} does not say with 0 or 1 whether image {number} trains.")
                split = "train" if official[number] == "1" else "test"
            listing.add(split, Item(f"images/{name}", label, FilePicture(root / "images" / name)))
        return listing


def _table(file: Path) -> dict[str, str]:
    """The lines `number rest` of a file; raises `DataError`."""
    if not file.is_file():
        raise DataError(f"{file.parent} has no {file.name}. Expected: {Cub.title}.")
    found: dict[str, str] = {}
    for place, line in enumerate(read_lines(file), start=1):
        number, _, rest = line.partition(" ")
        if not number.isdigit() or not rest.strip() or number in found:
            raise DataError(f"{file}, line {place}: {short(line)} is not a new number and what belongs to it.")
        found[number] = rest.strip()
    return found
