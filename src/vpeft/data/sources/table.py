"""A list of images: csv, tsv or Parquet with the columns path, label and, where there are splits, split."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, NamedTuple

from vpeft.data.config import DataConfig
from vpeft.data.images import is_image_name
from vpeft.data.items import BytesPicture, FilePicture, Item, Listing, Picture, is_whole_number, split_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.table_cells import readable_table
from vpeft.data.targets import Target, target_of
from vpeft.errors import nearest, need_extra
from vpeft.guarded import short
from vpeft.safe_text import unquoted_formula

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

# What Hugging Face writes beside the columns of a Parquet file.
_FEATURES = b"huggingface"


class Row(NamedTuple):
    """A line of a list: its number, the path of the image or the bytes of one, the target's cells, the split."""

    line: int
    image: str | bytes
    cells: list[str]
    split: str | None


class Rows(NamedTuple):
    """All lines, the names of the target's columns, and the names of the classes where the file tells them."""

    rows: list[Row]
    columns: list[str]
    classes: list[str] | None = None


@source
class Table:
    """Paths start from `root`, or from the list's own folder.

    One label is in the column `label`; several are in one cell, with ; | or , between them, or in a column for each,
    with 0 and 1; values are numbers in one or several columns; `mask` is the path of a mask, `depth` that of a depth
    map. In Parquet the image may be the bytes of a file, or {bytes, path} as Hugging Face writes it.
    """

    name = "table"
    title = "a csv, tsv or Parquet file with the columns path, label[, split]"
    targets = ("label", "labels", "values", "mask", "depth")

    def claims(self, config: DataConfig) -> Claim:
        path = Path(config.source).expanduser()
        is_list = path.suffix.lower() in {*_DELIMITERS, ".parquet"} and path.is_file()
        return Claim.MARK if is_list else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        root = (config.root or path.parent).expanduser()
        if not path.is_file():
            raise DataError(f"There is no list {path}.")
        target = target_of(config)
        rows, columns, classes = (_parquet if path.suffix.lower() == ".parquet" else _lines)(path, config, target)
        given = target.of_table([(row.line, row.cells) for row in rows], columns, config, str(path), root)
        if target.name == "label":
            known = [(row.line, one.text) for row, one in zip(rows, given, strict=True) if one is not None]
            check_labels(str(path), known, config.labels_are)
        listing = Listing(f"Expected: {self.title}.", labels=classes)
        if target.name == "values" or (target.name == "labels" and len(columns) > 1):
            listing.labels = columns
        if target.name == "mask":
            listing.labels = config.label_names or None
        with_split = any(row.split for row in rows)
        found = _Finder(root)
        for row, one in zip(rows, given, strict=True):
            split = split_of(row.split) if row.split else None
            if with_split and split is None:
                raise DataError(f"{path}, line {row.line}: the split {row.split!r} is none of train, val, test.")
            try:
                name = f"{row.line:06d}" if isinstance(row.image, bytes) else found.name(row.image)
            except OSError as error:
                raise DataError(
                    f"{path}, line {row.line}: {short(str(row.image), 200)} cannot be opened: {error.strerror}."
                ) from None
            picture: Picture = BytesPicture(row.image) if isinstance(row.image, bytes) else FilePicture(root / name)
            if one is None:
                listing.problems.add("unlabelled", name, f"line {row.line}")
                continue
            listing.add(split, Item(name, one.text, picture, one.value))
        return listing


class _Finder:
    """Finds the files that a list means where it writes paths in another way: backslashes, or no suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems: dict[Path, dict[str, list[str]]] = {}

    def name(self, text: str) -> str:
        """The path as it is, if there is such a file; else the one that is meant, if it is clear."""
        if (self.root / text).is_file():
            return text
        name = text
        if "\\" in text:
            name = PureWindowsPath(text).as_posix()
            if (self.root / name).is_file():
                return name
        folder, stem = (self.root / name).parent, PurePosixPath(name).name
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_image_name(file):
                    stems.setdefault(file.stem, []).append(file.name)
            self._stems[folder] = stems
        meant = self._stems[folder].get(stem, [])
        return PurePosixPath(name).with_name(meant[0]).as_posix() if len(meant) == 1 else text


def check_labels(where: str, labels: list[tuple[int, str]], kind: Literal["auto", "names", "numbers"]) -> None:
    """Raise `DataError` for a label that is empty, or not a number where the others (or `kind`) say that they are."""
    for line, label in labels:
        if not label:
            raise DataError(f"{where}, line {line}: the label is empty. Each image needs one.")
    words = [(line, label) for line, label in labels if not is_whole_number(label)]
    if kind == "names" or not words or (kind == "auto" and len(words) == len(labels)):
        return
    line, label = words[0]
    others = "labels_are is 'numbers'" if kind == "numbers" else f"{len(labels) - len(words)} others are"
    raise DataError(
        f"{where}, line {line}: the label {label!r} is not a number, while {others}. "
        "Mend it, or state labels_are = 'names' if labels are to be taken as they are written."
    )


def _columns(header: list[str], config: DataConfig, target: Target, where: str) -> tuple[int, list[int], int | None]:
    """The positions of the image, of the target's columns, and of the split in `header`."""
    lower = [name.strip().lower() for name in header]
    usual = "image" if "image" in lower and "path" not in lower else "path"
    asked = config.image_column or usual
    if asked.lower() not in lower:
        raise DataError(f"{where} has no column {asked!r}. {nearest(asked, [column.strip() for column in header])}")
    split = lower.index("split") if "split" in lower else None
    return lower.index(asked.lower()), target.columns(header, config, where), split


def _delimiter(first: str, path: Path) -> str:
    """What stands between the cells: the comma of a csv file, or the semicolon or tab of a spreadsheet's."""
    usual = _DELIMITERS.get(path.suffix.lower(), ",")
    if usual in first:
        return usual
    return next((one for one in (";", "\t") if one in first), usual)


def _lines(path: Path, config: DataConfig, target: Target) -> Rows:
    rows: list[Row] = []
    names: list[str] = []
    with readable_table(path), path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark in front
        first = next((line for line in file if line.strip()), "")
        delimiter = _delimiter(first, path)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        columns: tuple[int, list[int], int | None] | None = None
        width = 0
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            line = reader.line_num
            cells = [unquoted_formula(cell.strip()) for cell in cells]
            if columns is None:
                width = len(cells)
                if is_image_name(cells[0]) and 2 <= width <= 3:  # no header: the first row is an image
                    columns = (0, [1], 2 if width == 3 else None)
                    names = [target.name]
                else:
                    columns = _columns(cells, config, target, str(path))
                    names = [cells[place] for place in columns[1]]
                    continue
            if len(cells) != width:
                hint = " A path with a comma needs quotes around it." if delimiter == "," else ""
                raise DataError(f"{path}, line {line}: {len(cells)} columns, but the first line has {width}.{hint}")
            image, places, split = columns
            word = cells[split] if split is not None else None
            rows.append(Row(line, cells[image], [cells[place] for place in places], word))
    return Rows(rows, names)


def _parquet(path: Path, config: DataConfig, target: Target) -> Rows:
    parquet = need_extra("pyarrow.parquet", "bench")
    arrow = need_extra("pyarrow", "bench")
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    header = list(table.column_names)
    image, places, split = _columns(header, config, target, str(path))
    names = [header[place] for place in places]
    classes = _class_names(table.schema.metadata or {}, names[0]) if target.name == "label" else None
    try:
        images = table.column(image).to_pylist()
        columns = [table.column(place).to_pylist() for place in places]
        words = table.column(split).to_pylist() if split is not None else [None] * table.num_rows
    except UnicodeDecodeError as error:
        raise DataError(f"{path} holds text that is not UTF-8: {error.reason}.") from None
    rows = []
    for row, (value, word) in enumerate(zip(images, words, strict=True), start=1):
        if isinstance(value, Mapping):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise DataError(f"{path}, row {row}: the path is empty.")
        cells = [_text(column[row - 1], classes) for column in columns]
        kept = value if isinstance(value, bytes) else str(value)
        rows.append(Row(row, kept, cells, None if word is None else str(word)))
    return Rows(rows, names, classes)


def _text(value: Any, classes: list[str] | None) -> str:
    """A value of a Parquet file as the cell of a list."""
    if value is None:
        return ""
    if classes is not None and isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    if isinstance(value, list | tuple):
        return ";".join(map(str, value))
    return str(value)


def _class_names(metadata: Mapping[bytes, bytes], column: str) -> list[str] | None:
    """The names of a column of class numbers, where Hugging Face wrote them into the file."""
    try:
        names = json.loads(metadata[_FEATURES])["info"]["features"][column]["names"]
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return None
