"""A class number for each pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.tv_tensors import Mask as PixelMask

from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, FilePicture, Item, Picture, digest
from vpeft.data.on_pixels import IGNORED, CheckDepth, CheckedTarget, OnPixels, Size
from vpeft.data.pixels import UnreadableImage
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import (
    any_fraction,
    column_place,
    first_of,
    is_number,
)
from vpeft.data.target import Given, Target, note_unseen, register_target


@dataclass(frozen=True, slots=True)
class Mask(OnPixels):
    """Where a mask is, and which classes are in it, once somebody has looked."""

    picture: Picture
    classes: tuple[int, ...] | None = None

    def numbers(self) -> Tensor:
        """Class numbers int64 (H, W); 255 does not count."""
        return torch.from_numpy(self.picture.numbers().astype(np.int64))

    def looked(self) -> Mask:
        """The same mask, with the classes that are in it. Raises `UnreadableImage`."""
        return self._looked(self.picture.numbers())

    def _looked(self, numbers: NDArray[np.integer[Any]]) -> Mask:
        found = np.unique(numbers)
        return Mask(self.picture, tuple(int(one) for one in found if one != IGNORED))

    def checked(self, depth: CheckDepth, size: Size | None, classes: int | None) -> CheckedTarget:
        """Look at the mask as deep as asked; where the source names no classes, its numbers are read in any case."""
        file = self.picture.file
        if file is not None and not file.is_file():
            return CheckedTarget(self, fault=("missing_mask", f"{file.name} is not there"))
        content = ""
        try:
            if depth != "none":
                content = digest(self.picture.content())
            if depth != "decode" and classes is not None:
                return CheckedTarget(self, content)
            numbers = self.picture.numbers()
            if size is not None and numbers.shape != size:
                detail = f"{numbers.shape[1]} x {numbers.shape[0]} for an image of {size[1]} x {size[0]}"
                return CheckedTarget(self, content, fault=("mask_size", detail))
            mask = self._looked(numbers)
        except (UnreadableImage, OSError) as error:
            return CheckedTarget(self, content, unreadable=f"its mask: {error}")
        there = mask.classes or ()
        wrong = [one for one in there if one < 0 or (classes is not None and one >= classes)]
        if wrong or max(there, default=0) > IGNORED:
            shown = ", ".join(map(str, wrong[:5] or [max(there)]))
            named = f"there are {classes} classes, 0 to {classes - 1}" if classes else f"0 to {IGNORED - 1} are classes"
            return CheckedTarget(self, content, fault=("mask_value", f"it holds {shown}; {named}"))
        return CheckedTarget(mask, content)


@register_target("mask")
class Masks(Target):
    """A class number for each pixel; a sample carries int64 (H, W), where 255 does not count."""

    given = "masks are"
    plural = "masks"
    task = "semantic_segmentation"
    wants = "a mask"
    on_pixels = True

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        if first_of(header, (config.label_column or "mask",)) is None and first_of(header, ("label",)) is not None:
            raise self.refused(f"{where}, column 'label'", "label")
        return [column_place(header, config.label_column or "mask", where)]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        cells = [cells[0] for _, cells in rows]
        if cells and all(is_number(cell) for cell in cells):
            raise self.refused(f"{where}, column {names[0]!r}", "values" if any_fraction(cells) else "label")
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
            note_unseen(self, splits, labels, (), problems)
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
        return lambda item: PixelMask(item.target.numbers())

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return ["mask"]

    def cells(self, item: Item) -> list[str]:
        file = item.target.picture.file
        return ["" if file is None else file.as_posix()]
