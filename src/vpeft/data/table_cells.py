"""The cells of a table as targets of images: numbers, several words in one cell, and the columns that hold them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vpeft.data.config import DataConfig
from vpeft.data.items import is_whole_number
from vpeft.data.problems import DataError
from vpeft.errors import nearest

# Texts by which spreadsheets and pandas say that a cell has no value.
NO_VALUE = frozenset({"nan", "NaN", "<NA>"})


@contextmanager
def readable_table(path: Path) -> Iterator[None]:
    """A context in which the lines of a table are read; what is no table of UTF-8 text is a DataError that says so."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{path} is no table of separated values: {error}.") from error


def split_cell(text: str, separator: str | None) -> list[str]:
    parts = [text] if separator is None else text.split(separator)
    return [part.strip() for part in parts if part.strip()]


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def all_numbers(texts: Iterable[str]) -> bool:
    return all(is_number(text) for text in texts)


def any_fraction(texts: Iterable[str]) -> bool:
    return any(not is_whole_number(text) and not float(text).is_integer() for text in texts)


def column_names(classes: Sequence[str] | None, count: int, where: str, word: str = "") -> list[str]:
    if classes is None:
        return numbered(word, count)
    if len(classes) != count:
        raise DataError(f"{where} has {count} columns, but {len(classes)} names are given.")
    return list(classes)


def numbered(word: str, count: int) -> list[str]:
    if word and count == 1:
        return [word]
    return [f"{word}{number}" for number in range(count)]


def column_place(header: Sequence[str], name: str, where: str) -> int:
    found = first_of(header, (name,))
    if found is None:
        raise DataError(f"{where} has no column {name!r}. {nearest(name, [column.strip() for column in header])}")
    return found


def first_of(header: Sequence[str], names: Iterable[str]) -> int | None:
    lower = [column.strip().lower() for column in header]
    return next((lower.index(name.lower()) for name in names if name.lower() in lower), None)


def other_columns(header: Sequence[str], config: DataConfig, where: str, what: str) -> list[int]:
    """All columns but those of the image and the split, and a nameless one of row numbers."""
    known = {(config.image_column or "path").lower(), "path", "image", "split", ""}
    found = [place for place, name in enumerate(header) if name.strip().lower() not in known]
    if not found:
        raise DataError(f"{where} has no column of {what} beside {', '.join(header)}.")
    return found
