"""One label for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.items import Item, in_order
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import (
    NO_VALUE,
    all_numbers,
    any_fraction,
    column_place,
)
from vpeft.data.target import Given, Target, known, note_unseen, register_target


@register_target("label")
class Label(Target):
    """One label for each image; a sample carries its number in the order of the labels."""

    given = "words are"
    plural = "class numbers"
    task = "classification"
    wants = "one label"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if len(config.label_columns) > 1:
            raise self.refused(f"{where}, columns {', '.join(config.label_columns)}", "labels")
        return [column_place(header, config.label_column or next(iter(config.label_columns), "label"), where)]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        cells = [(line, cells[0]) for line, cells in rows]
        found = [label for _, label in cells if label not in NO_VALUE or config.labels_are == "names"]
        if config.labels_are == "auto" and found and all_numbers(found) and any_fraction(found):
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
        note_unseen(self, splits, labels, stated, problems)
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
        return lambda item: known(index, (item.label,), labels)[0]
