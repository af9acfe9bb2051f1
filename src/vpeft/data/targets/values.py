"""One or several numbers for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, tensor

from vpeft.data.config import DataConfig
from vpeft.data.items import Item
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import (
    NO_VALUE,
    column_names,
    column_place,
    first_of,
    is_number,
    numbered,
    other_columns,
    split_cell,
)
from vpeft.data.target import Given, Target, register_target

# Numbers are cut into so many parts of equal size for stratified splits, where there are enough images.
BINS = 10


def values_given(values: Sequence[float]) -> Given:
    """Numbers of one image."""
    return Given(";".join(map(repr, values)), tuple(values))


@register_target("values")
class Values(Target):
    """One or several numbers for each image; a sample carries a float vector (K,)."""

    given = "floats are"
    plural = "real numbers"
    task = "regression"
    wants = "numbers"

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names)

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if config.label_columns:
            return [column_place(header, name, where) for name in config.label_columns]
        if config.label_column:
            return [column_place(header, config.label_column, where)]
        found = first_of(header, ("value", "target", "label", "y"))
        return [found] if found is not None else other_columns(header, config, where, "values")

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
                if cell and cell not in NO_VALUE and not is_number(cell):
                    several = any(all(map(is_number, split_cell(cell, one))) for one in ";|,")
                    if several:
                        raise DataError(f"{where}, line {line}: {cell!r} is several numbers; give a column for each.")
                    raise self.refused(f"{where}, line {line}, column {name!r} holds {cell!r}", "label")
        full = [all(cell and cell not in NO_VALUE for cell in cells) for _, cells in rows]
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
        self.names = column_names(classes, rows.shape[1], where, "value")
        return [values_given([float(one) for one in row]) for row in rows]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        width = len(items[0].target) if items else 0
        names = list(stated) if stated else self.names
        return names if len(names) == width else numbered("value", width)

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

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return list(labels)

    def cells(self, item: Item) -> list[str]:
        return [repr(value) for value in item.target]
