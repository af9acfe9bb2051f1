"""What is known of each image, one class for each kind: one label, several labels, numbers, or a mask.

A kind says how a table and an array give it, how a sample carries it, by what splits are stratified, what lists and
manifests say of it, and refuses what belongs to another kind with the task that fits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, tensor

from vpeft.data.config import DataConfig, TargetName
from vpeft.data.items import ArrayPicture, FilePicture, Item, Picture, in_order, is_whole_number
from vpeft.data.problems import DataError, Problems
from vpeft.errors import nearest

# The class number of pixels that do not count, as in Pascal VOC and Cityscapes.
IGNORED = 255
# Numbers are cut into so many parts of equal size for stratified splits, where there are enough images.
BINS = 10
# Texts by which spreadsheets and pandas say that a cell has no value.
_NO_VALUE = frozenset({"nan", "NaN", "<NA>"})
# What is given, and which task learns it.
_FITTING: Mapping[TargetName, tuple[str, str]] = {
    "label": ("words are", "classification"),
    "labels": ("several labels of each image are", "multilabel"),
    "values": ("floats are", "regression"),
    "mask": ("masks are", "semantic_segmentation"),
}


class Given(NamedTuple):
    """The target of one image as a source gives it: the text for lists, and what the text says (None: the same)."""

    text: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Mask:
    """Where a mask is, and which classes are in it, once somebody has looked."""

    picture: Picture
    classes: tuple[int, ...] | None = None

    def numbers(self) -> Tensor:
        """Class numbers int64 (H, W); 255 does not count."""
        return torch.from_numpy(self.picture.numbers().astype(np.int64))

    def looked(self) -> Mask:
        """The same mask, with the classes that are in it. Raises `UnreadableImage`."""
        found = np.unique(self.picture.numbers())
        return Mask(self.picture, tuple(int(one) for one in found if one != IGNORED))


class Target(ABC):
    """A kind of target.

    Class attributes:
        name: as `DataConfig.target` says it.
        wants: what the task wants of each image, in words.
        several: whether an image needs more than one value, so that labels do not partition the images.
    """

    name: ClassVar[TargetName]
    wants: ClassVar[str]

    @property
    def task(self) -> str:
        """The task that learns it."""
        return _FITTING[self.name][1]

    def refused(self, where: str, found: TargetName) -> DataError:
        """The error that a target of another kind was found, with the task that fits."""
        given, task = _FITTING[found]
        return DataError(f"{where}: {given} given where {self.task} wants {self.wants}: use --task {task}.")

    # -- reading --------------------------------------------------------------------------------------------------

    @abstractmethod
    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        """Positions of the columns of a table that hold the target; raises `DataError` where there are none."""

    @abstractmethod
    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        """The targets in the cells of a table.

        Args:
            rows: line number, and the cells of the columns that `columns` chose.
            names: of these columns.
            config: of the data set.
            where: the table, for messages.
            root: the folder that paths start from.

        Returns:
            one for each row; None for a row without a target.
        """

    @abstractmethod
    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        """The targets in an array whose first axis counts images; `classes` names columns or numbers."""

    # -- describing -----------------------------------------------------------------------------------------------

    @abstractmethod
    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        """Names of classes or values in the order of their numbers; `stated` where the source says them."""

    @abstractmethod
    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        """Note what is wrong with the targets of all splits; raises `DataError` where nothing can be learnt."""

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """For each item's name the group of which splits take a due share."""
        return {item.name: item.label for item in items}

    def counts(self, items: Sequence[Item], labels: Sequence[str]) -> dict[str, int]:
        """Images per label, zeros included."""
        counted = Counter(label for item in items for label in self.of_item(item, labels))
        return {label: counted[label] for label in labels}

    @abstractmethod
    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        """Which of `labels` an image shows."""

    @abstractmethod
    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        """A function from an item to what a sample carries. Raises `DataError` for an item with an unknown label."""


class Label(Target):
    """One label for each image; a sample carries its number in the order of the labels."""

    name = "label"
    wants = "one label"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if len(config.label_columns) > 1:
            raise self.refused(f"{where}, columns {', '.join(config.label_columns)}", "labels")
        return [_column(header, config.label_column or next(iter(config.label_columns), "label"), where)]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        cells = [(line, cells[0]) for line, cells in rows]
        found = [label for _, label in cells if label not in _NO_VALUE or config.labels_are == "names"]
        if config.labels_are == "auto" and found and _all_numbers(found) and _any_fraction(found):
            raise self.refused(f"{where}, column {names[0]!r}", "values")
        known = set(found)
        return [Given(label) if label in known else None for _, label in cells]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim == 3:
            raise self.refused(where, "mask")
        if array.ndim == 2 and array.dtype.kind in "biuf":
            raise self.refused(where, "labels" if np.isin(array, (0, 1)).all() else "values")
        if array.ndim != 1:
            raise DataError(f"{where} has the shape {array.shape}; give one label per image, (N,).")
        if array.dtype.kind in "US":
            return [Given(str(np.char.decode(one, "utf-8") if array.dtype.kind == "S" else one)) for one in array]
        if array.dtype.kind == "f":
            if not np.all(array == np.floor(array)):
                raise self.refused(f"{where} holds {array.dtype}", "values")
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise DataError(f"{where} holds {array.dtype}; give whole numbers or names.")
        if classes is None:
            return [Given(str(int(one))) for one in array]
        wrong = [int(one) for one in array if not 0 <= one < len(classes)]
        if wrong:
            raise DataError(
                f"{where} holds {wrong[0]}, but there are {len(classes)} class names (0 to {len(classes) - 1})."
            )
        return [Given(classes[int(one)]) for one in array]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        used = {item.label for item in items}
        return in_order(used) if stated is None else [label for label in stated if label in used]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        _note_unseen(self, splits, labels, stated, problems)
        if len(labels) < 2:
            found = f"one class, {labels[0]!r}" if labels else "no class"
            raise DataError(
                f"The data holds {found}; at least two are needed to learn to tell them apart. "
                "A folder needs one sub-folder per class; a list needs one label per line."
            )

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        return (item.label,)

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        index = {label: position for position, label in enumerate(labels)}
        return lambda item: _known(index, (item.label,), labels)[0]


class Labels(Target):
    """Any number of labels for each image; a sample carries a float vector (K,) of 0 and 1."""

    name = "labels"
    wants = "any number of labels"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if config.label_columns:
            return [_column(header, name, where) for name in config.label_columns]
        usual = (config.label_column,) if config.label_column else ("labels", "label", "tags")
        found = _first_of(header, usual)
        if found is not None:
            return [found]
        if config.label_column:
            return [_column(header, config.label_column, where)]
        return _others(header, config, where, "labels")

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        if len(names) > 1 or config.label_columns:
            return [self._of_switches(cells, names, f"{where}, line {line}") for line, cells in rows]
        texts = [cells[0] for _, cells in rows]
        found = [text for text in texts if text and text not in _NO_VALUE]
        if found and _all_numbers(found) and _any_fraction(found):
            raise self.refused(f"{where}, column {names[0]!r}", "values")
        separator = config.label_separator or next((one for one in ";|," if any(one in text for text in found)), None)
        return [None if text in _NO_VALUE else labels_given(_split(text, separator)) for text in texts]

    def _of_switches(self, cells: Sequence[str], names: Sequence[str], where: str) -> Given:
        on = []
        for cell, name in zip(cells, names, strict=True):
            word = cell.strip().lower()
            if word in ("1", "1.0", "true", "yes", "x"):
                on.append(name)
            elif word not in ("0", "0.0", "false", "no", "", "-1"):  # -1: CelebA's word for absent
                if _is_number(word):
                    raise self.refused(f"{where}, column {name!r} holds {cell}", "values")
                raise DataError(f"{where}: {name} is {cell!r}; a column of one label holds 0 or 1.")
        return labels_given(on)

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim == 3:
            raise self.refused(where, "mask")
        if array.ndim == 2 and array.dtype.kind == "f" and not np.isin(array, (0, 1)).all():
            raise self.refused(where, "values")
        if array.ndim == 1 and array.dtype.kind == "f" and not np.all(array == np.floor(array)):
            raise self.refused(where, "values")
        if array.ndim == 1:
            raise self.refused(where, "label")
        if array.ndim != 2 or array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise DataError(f"{where} is {array.dtype} {array.shape}; give 0 and 1 of the shape (N, K).")
        names = _names(classes, array.shape[1], where)
        return [labels_given([name for name, there in zip(names, row, strict=True) if there]) for row in array]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        used = {label for item in items for label in item.target}
        return in_order(used) if stated is None else [label for label in stated if label in used]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        _note_unseen(self, splits, labels, stated, problems)
        if not labels:
            raise DataError("No image carries a label. A list needs a column of labels, or a column for each label.")

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """The rarest label of each image, so that no split is left without it."""
        count = Counter(label for item in items for label in item.target)
        return {item.name: min(item.target, key=lambda one: (count[one], one), default="") for item in items}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        found: Sequence[str] = item.target
        return found

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        index = {label: position for position, label in enumerate(labels)}

        def encode(item: Item) -> Tensor:
            vector = torch.zeros(len(labels))
            vector[_known(index, item.target, labels)] = 1.0
            return vector

        return encode


class Values(Target):
    """One or several numbers for each image; a sample carries a float vector (K,)."""

    name = "values"
    wants = "numbers"

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if config.label_columns:
            return [_column(header, name, where) for name in config.label_columns]
        if config.label_column:
            return [_column(header, config.label_column, where)]
        found = _first_of(header, ("value", "target", "label", "y"))
        return [found] if found is not None else _others(header, config, where, "values")

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        self.names = list(names)
        for line, cells in rows:
            for cell, name in zip(cells, names, strict=True):
                if cell and cell not in _NO_VALUE and not _is_number(cell):
                    several = any(all(map(_is_number, _split(cell, one))) for one in ";|,")
                    if several:
                        raise DataError(f"{where}, line {line}: {cell!r} is several numbers; give a column for each.")
                    raise self.refused(f"{where}, line {line}, column {name!r} holds {cell!r}", "label")
        full = [all(cell and cell not in _NO_VALUE for cell in cells) for _, cells in rows]
        return [
            values_given([float(cell) for cell in cells]) if there else None
            for (_, cells), there in zip(rows, full, strict=True)
        ]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.dtype.kind in "USO":
            raise self.refused(where, "label")
        if array.ndim == 3:
            raise self.refused(where, "mask")
        if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
            raise DataError(f"{where} is {array.dtype} {array.shape}; give numbers of the shape (N,) or (N, K).")
        rows = array[:, None] if array.ndim == 1 else array
        if not np.isfinite(rows).all():
            raise DataError(f"{where} holds numbers that are not finite. Leave out those images.")
        self.names = _names(classes, rows.shape[1], where, "value")
        return [values_given([float(one) for one in row]) for row in rows]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        width = len(items[0].target) if items else 0
        names = list(stated) if stated else self.names
        return names if len(names) == width else _numbered("value", width)

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        train = [item.target for item in splits.get("train", ())]
        if train and all(one == train[0] for one in train):
            raise DataError(f"All training images have the same values, {train[0]}; there is nothing to learn.")

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """Ten parts of equal size by the first number, fewer where there are fewer than five images for each."""
        parts = max(1, min(BINS, len(items) // 5))
        ranked = sorted(items, key=lambda item: (item.target[0], item.name))
        return {item.name: f"{place * parts // len(ranked):02d}" for place, item in enumerate(ranked)}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        return labels

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        def encode(item: Item) -> Tensor:
            if len(item.target) != len(labels):
                raise DataError(f"{item.name} has {len(item.target)} values, not {len(labels)}: {', '.join(labels)}.")
            return tensor(item.target, dtype=torch.float32)

        return encode


class Masks(Target):
    """A class number for each pixel; a sample carries int64 (H, W), where 255 does not count."""

    name = "mask"
    wants = "a mask"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if _first_of(header, (config.label_column or "mask",)) is None and _first_of(header, ("label",)) is not None:
            raise self.refused(f"{where}, column 'label'", "label")
        return [_column(header, config.label_column or "mask", where)]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        cells = [cells[0] for _, cells in rows]
        if cells and all(_is_number(cell) for cell in cells):
            raise self.refused(f"{where}, column {names[0]!r}", "values" if _any_fraction(cells) else "label")
        return [Given("", Mask(FilePicture((config.masks or root) / cell))) if cell else None for cell in cells]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):
            array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
        if array.ndim < 3:
            whole = array.dtype.kind in "biuUS" or (array.dtype.kind == "f" and bool(np.all(array == np.floor(array))))
            raise self.refused(where, "values" if not whole else "label" if array.ndim == 1 else "labels")
        if array.ndim != 3 or array.dtype.kind not in "biu":
            raise DataError(f"{where} is {array.dtype} {array.shape}; give whole numbers of the shape (N, H, W).")
        return [Given("", Mask(ArrayPicture(array, index))) for index in range(len(array))]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        if stated:
            return list(stated)
        seen = {one for item in items for one in item.target.classes or ()}
        return [str(number) for number in range(max(seen, default=-1) + 1)]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        if any(item.target.classes is not None for item in splits.get("train", ())):
            _note_unseen(self, splits, labels, (), problems)
        if len(labels) < 2:
            raise DataError(
                f"The masks hold {'the class 0 alone' if labels else 'no class'}; at least two are needed. A pixel "
                f"holds 0, 1, 2, ... for its class, and {IGNORED} where it does not count: write the pixels of one "
                f"object as 1, not as {IGNORED}."
            )

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """One group: masks mix classes."""
        return {item.name: "" for item in items}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        classes = item.target.classes
        return labels if classes is None else [labels[number] for number in classes if number < len(labels)]

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        return lambda item: item.target.numbers()


def target_of(config: DataConfig | TargetName) -> Target:
    """The kind of target that a configuration, or its name, asks for."""
    name = config if isinstance(config, str) else config.target
    kinds: dict[TargetName, type[Target]] = {kind.name: kind for kind in (Label, Labels, Values, Masks)}
    return kinds[name]()


def _known(index: Mapping[str, int], found: Iterable[str], labels: Sequence[str]) -> list[int]:
    try:
        return [index[label] for label in found]
    except KeyError as error:
        shown = ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise DataError(
            f"Labels {error.args[0]!r} are in the data but not among the {len(labels)} known ones ({shown})."
        ) from None


def _note_unseen(
    target: Target,
    splits: Mapping[Any, Sequence[Item]],
    labels: Sequence[str],
    stated: Iterable[str],
    problems: Problems,
) -> None:
    """Note classes that no image shows, and those that no training image shows."""
    for label in dict.fromkeys(stated):
        if label not in labels:
            problems.add("empty_class", label)
    of_split = {
        split: {one for item in items for one in target.of_item(item, labels)} for split, items in splits.items()
    }
    for label in labels:
        if label not in of_split.get("train", set()):
            where = [split for split, seen in of_split.items() if label in seen]
            if where:
                problems.add("unseen_class", label, f"only in {' and '.join(where)}")
            else:
                problems.add("empty_class", label)


def labels_given(labels: Iterable[str]) -> Given:
    """Several labels of one image."""
    ordered = tuple(in_order(set(labels)))
    return Given(";".join(ordered), ordered)


def values_given(values: Sequence[float]) -> Given:
    """Numbers of one image."""
    return Given(";".join(map(repr, values)), tuple(values))


def _split(text: str, separator: str | None) -> list[str]:
    parts = [text] if separator is None else text.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _all_numbers(texts: Iterable[str]) -> bool:
    return all(_is_number(text) for text in texts)


def _any_fraction(texts: Iterable[str]) -> bool:
    return any(not is_whole_number(text) and not float(text).is_integer() for text in texts)


def _names(classes: Sequence[str] | None, count: int, where: str, word: str = "") -> list[str]:
    if classes is None:
        return _numbered(word, count)
    if len(classes) != count:
        raise DataError(f"{where} has {count} columns, but {len(classes)} names are given.")
    return list(classes)


def _numbered(word: str, count: int) -> list[str]:
    if word and count == 1:
        return [word]
    return [f"{word}{number}" for number in range(count)]


def _column(header: Sequence[str], name: str, where: str) -> int:
    found = _first_of(header, (name,))
    if found is None:
        raise DataError(f"{where} has no column {name!r}. {nearest(name, [column.strip() for column in header])}")
    return found


def _first_of(header: Sequence[str], names: Iterable[str]) -> int | None:
    lower = [column.strip().lower() for column in header]
    return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)


def _others(header: Sequence[str], config: DataConfig, where: str, what: str) -> list[int]:
    """All columns but those of the image and the split, and a nameless one of row numbers."""
    known = {(config.image_column or "path").lower(), "path", "image", "split", ""}
    found = [place for place, name in enumerate(header) if name.strip().lower() not in known]
    if not found:
        raise DataError(f"{where} has no column of {what} beside {', '.join(header)}.")
    return found
