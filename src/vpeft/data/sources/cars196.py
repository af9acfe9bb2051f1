"""Stanford Cars: MATLAB's lists with car_ims/, or the devkit with cars_train/ and cars_test/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vpeft.data.config import DataConfig
from vpeft.data.items import FilePicture, Item, Listing, SplitName
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import short

_WHOLE = "cars_annos.mat"
_DEVKIT = "devkit"
_TRAIN, _META = "cars_train_annos.mat", "cars_meta.mat"
# The labels of the test images came later, under either name.
_TEST = ("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels (1).mat")


@source
class Cars196:
    """196 models of cars. Split by images it is the official split of 8,144 and 8,041 images; split by classes the
    first half of the classes trains and the other is tested, 8,054 and 8,131 images, as in every paper on retrieval."""

    name = "cars196"
    title = "Stanford Cars: cars_annos.mat and car_ims/, or devkit/ (or its files), cars_train/ and cars_test/"

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        there = (root / _WHOLE).is_file() or any((one / _TRAIN).is_file() for one in (root, root / _DEVKIT))
        return Claim.FORMAT if there else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        root = Path(config.source).expanduser()
        found = list(_of_whole(root) if (root / _WHOLE).is_file() else _of_devkit(root))
        names = _class_names(root)
        numbers = sorted({number for _, number, _ in found})
        if names and numbers and numbers[-1] > len(names):
            raise DataError(f"{root} names {len(names)} classes, and an image has the number {numbers[-1]}.")
        labels = names or [str(number) for number in numbers]
        half = (len(labels) + 1) // 2
        listing = Listing(f"Expected: {self.title}.", labels=labels)
        for name, number, official in found:
            place = number - 1 if names else numbers.index(number)
            split: SplitName = official
            if config.split_by == "classes":
                split = "train" if place < half else "test"
            listing.add(split, Item(name, labels[place], FilePicture(root / name)))
        return listing


def _of_whole(root: Path) -> Iterator[tuple[str, int, SplitName]]:
    for row in _rows(root / _WHOLE, ("relative_im_path", "class", "test")):
        yield str(row["relative_im_path"]), _number(row["class"], root / _WHOLE), "test" if row["test"] else "train"


def _of_devkit(root: Path) -> Iterator[tuple[str, int, SplitName]]:
    folder = _devkit(root)
    test = next((folder / name for name in _TEST if (folder / name).is_file()), None)
    test = test or next((root / name for name in _TEST if (root / name).is_file()), None)
    if test is None:
        raise DataError(
            f"{root} has no {_TEST[0]}, which has the classes of the test images; cars_test_annos.mat has none."
        )
    for split, images, file in (("train", "cars_train", folder / _TRAIN), ("test", "cars_test", test)):
        for row in _rows(file, ("fname", "class")):
            yield f"{images}/{row['fname']}", _number(row["class"], file), split  # type: ignore[misc]


def _devkit(root: Path) -> Path:
    return root / _DEVKIT if (root / _DEVKIT / _TRAIN).is_file() else root


def _class_names(root: Path) -> list[str]:
    """The names of the classes, where a file of the set has them."""
    for file in (root / _WHOLE, _devkit(root) / _META):
        if file.is_file():
            names = _matlab(file).get("class_names")
            if names is not None:
                return [str(name) for name in np.atleast_1d(names)]
    return []


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    table = _matlab(file).get("annotations")
    fields = getattr(getattr(table, "dtype", None), "names", None) or ()
    lacking = [name for name in columns if name not in fields]
    if table is None or lacking:
        raise DataError(f"{file} has no table `annotations` with {', '.join(lacking or columns)}.")
    yield from np.atleast_1d(table)


def _number(value: Any, file: Path) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise DataError(f"{file}: the class {short(str(value))} is no number.") from None
    if number < 1:
        raise DataError(f"{file}: classes count from 1 on, and one is {number}.")
    return number


def _matlab(file: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        found: dict[str, Any] = loadmat(str(file), squeeze_me=True)
    except Exception as error:  # scipy raises whatever a broken file leads to
        raise DataError(f"{file} cannot be read as a file of MATLAB ({type(error).__name__}: {error}).") from None
    return found
