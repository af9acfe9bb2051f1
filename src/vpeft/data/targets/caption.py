"""Texts that say what is on each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.items import Item
from vpeft.data.problems import DataError, Problems
from vpeft.data.table_cells import column_place, first_of
from vpeft.data.target import Given, Target, register_target

COLUMNS = ("caption", "captions", "text", "sentence")


def captions_given(texts: Iterable[str]) -> Given:
    """One or several captions of an image, without spaces around them and empty ones."""
    found = tuple(text.strip() for text in texts if text.strip())
    return Given(" | ".join(found), found)


@register_target("caption")
class Caption(Target):
    """One or several texts for each image; a sample carries them as a tuple of words."""

    given = "captions are"
    plural = "captions"
    task = "contrastive"
    wants = "a text"

    def columns(self, header: Sequence[str], config: DataConfig, where: str) -> list[int]:
        asked = config.label_column or first_name(header)
        return [column_place(header, asked, where)]

    def of_table(
        self,
        rows: Sequence[tuple[int, Sequence[str]]],
        names: Sequence[str],
        config: DataConfig,
        where: str,
        root: Path,
    ) -> list[Given | None]:
        apart = config.label_separator
        made = [captions_given(cells[0].split(apart) if apart else [cells[0]]) for _, cells in rows]
        return [one if one.value else None for one in made]

    def of_array(self, array: NDArray[Any], classes: Sequence[str] | None, where: str) -> list[Given]:
        if array.ndim != 1 or array.dtype.kind not in "UO":
            raise DataError(f"{where} is {array.dtype} {array.shape}; captions are an array of N texts.")
        return [captions_given([str(text)]) for text in array]

    def labels(self, items: Sequence[Item], stated: Sequence[str] | None) -> list[str]:
        return []

    def compare(
        self, splits: Mapping[Any, Sequence[Item]], labels: Sequence[str], stated: Iterable[str], problems: Problems
    ) -> None:
        train = {item.target for item in splits.get("train", ())}
        if len(train) < 2:
            raise DataError("All training images have the same caption, so there is nothing to tell apart.")

    def strata(self, items: Sequence[Item]) -> dict[str, str]:
        """All in one group: captions make no classes."""
        return {item.name: "" for item in items}

    def of_item(self, item: Item, labels: Sequence[str]) -> Sequence[str]:
        return ()

    def encoder(self, labels: Sequence[str]) -> Callable[[Item], Any]:
        return lambda item: item.target

    def list_columns(self, labels: Sequence[str]) -> list[str]:
        return ["caption"]

    def cells(self, item: Item) -> list[str]:
        return [" | ".join(item.target)]


def first_name(header: Sequence[str]) -> str:
    """The usual name of the column of captions that a header has; "caption" where it has none."""
    found = first_of(header, COLUMNS)
    return "caption" if found is None else header[found]
