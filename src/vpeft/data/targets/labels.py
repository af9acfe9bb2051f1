"""Any number of labels for each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vpeft.data.config import DataConfig
from vpeft.data.items import Item, in_order
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import (
    NO_VALUE,
    all_numbers,
    any_fraction,
    column_names,
    column_place,
    first_of,
    is_number,
    other_columns,
    split_cell,
)
from vpeft.data.target import Given, Target, known, note_unseen, register_target


def labels_given(labels: Iterable[str]) -> Given:
    """Several labels of one image."""
    ordered = tuple(in_order(set(labels)))
    return Given(";".join(ordered), ordered)


@register_target("labels")
class Labels(Target):
    """Any number of labels for each image; a sample carries a float vector (K,) of 0 and 1."""

    given = "several labels of each image are"
    plural = "several labels for each sample"
    task = "multilabel"
    wants = "any number of labels"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if config.label_columns:
            return [column_place(header, name, where) for name in config.label_columns]
        usual = (config.label_column,) if config.label_column else ("labels", "label", "tags")
        found = first_of(header, usual)
        if found is not None:
            return [found]
        if config.label_column:
            return [column_place(header, config.label_column, where)]
        return other_columns(header, config, where, "labels")

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
        found = [text for text in texts if text and text not in NO_VALUE]
        if found and all_numbers(found) and any_fraction(found):
            raise self.refused(f"{where}, column {names[0]!r}", "values")
        separator = config.label_separator or next((one for one in ";|," if any(one in text for text in found)), None)
        return [None if text in NO_VALUE else labels_given(split_cell(text, separator)) for text in texts]

    def _of_switches(self, cells: Sequence[str], names: Sequence[str], where: str) -> Given:
        on = []
        for cell, name in zip(cells, names, strict=True):
            word = cell.strip().lower()
            if word in ("1", "1.0", "true", "yes", "x"):
                on.append(name)
            elif word not in ("0", "0.0", "false", "no", "", "-1"):  # -1: CelebA's word for absent
                if is_number(word):
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
        names = column_names(classes, array.shape[1], where)
        return [labels_given([name for name, there in zip(names, row, strict=True) if there]) for row in array]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        used = {label for item in items for label in item.target}
        return in_order(used) if stated is None else [label for label in stated if label in used]

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        note_unseen(self, splits, labels, stated, problems)
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
            vector[known(index, item.target, labels)] = 1.0
            return vector

        return encode

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return ["labels"]
