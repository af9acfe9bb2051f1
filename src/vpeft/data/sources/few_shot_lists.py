"""The few-shot lists of NOAH (CoOp's splits): annotations/train_meta.list.num_shot_K.seed_S and test_meta.list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from vpeft.data.annotations import read_lines
from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName, is_whole_number
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import short

_LISTS, _IMAGES, _TEST = "annotations", "images", "test_meta.list"
_TRAIN = re.compile(r"train_meta\.list\.num_shot_(\d+)\.seed_(\d+)")


@source
class FewShotLists:
    """`per_class` names the number of shots and `seed` the draw: `--data.per-class 4 --data.seed 1`.

    Lines are `file label`. A line that is there twice, as in the pets' lists of one shot, counts once. The list
    val_meta.list is left alone: the published comparisons do not use it and test the last epoch.
    """

    name = "few_shot_lists"
    title = "a folder with annotations/train_meta.list.num_shot_K.seed_S, annotations/test_meta.list and images/"

    def claims(self, config: DataConfig) -> Claim:
        return Claim.FORMAT if _draws(Path(config.source).expanduser()) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        images = (config.root or root / _IMAGES).expanduser()
        draws = _draws(root)
        asked = (config.per_class, config.seed)
        if asked not in draws:
            there = ", ".join(f"{shots} with seed {seed}" for shots, seed in sorted(draws))
            raise DataError(
                f"{root} has no list of {config.per_class} shots with seed {config.seed}. Name one with"
                f" --data.per-class and --data.seed; there are: {there}."
            )
        listing = Listing(f"Expected: {self.title}.")
        test = root / _LISTS / _TEST
        if not test.is_file():
            raise DataError(f"{root / _LISTS} has no {_TEST}. Expected: {self.title}.")
        files: tuple[tuple[SplitName, Path], ...] = (("train", draws[asked]), ("test", test))
        for split, file in files:
            for name, label in dict.fromkeys(_lines(file)):
                listing.add(split, Item(name, label, FilePicture(images / name)))
        return listing


def _draws(root: Path) -> dict[tuple[int | None, int], Path]:
    """The lists by their number of shots and their seed."""
    folder = root / _LISTS
    if not folder.is_dir():
        return {}
    matches = [(match, file) for file in sorted(folder.iterdir()) if (match := _TRAIN.fullmatch(file.name))]
    return {(int(match[1]), int(match[2])): file for match, file in matches}


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for place, line in enumerate(read_lines(file), start=1):
        name, _, label = line.rpartition(" ")
        if not name.strip() or not is_whole_number(label):
            raise DataError(f"{file}, line {place}: {short(line)} is not a file and the number of its class.")
        yield name.strip(), str(int(label))
