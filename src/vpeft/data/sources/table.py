"""A list of images: csv, tsv or Parquet with the columns path, label and, where there are splits, split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from vpeft.data.config import DataConfig
from vpeft.data.images import is_image_name
from vpeft.data.items import FilePicture, Item, Listing, is_whole_number, split_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest, need_extra

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

# (line number, path, label, split or None)
Row = tuple[int, str, str, str | None]


@source
class Table:
    """Paths start from `root`, or from the list's own folder."""

    name = "table"
    title = "a csv, tsv or Parquet file with the columns path, label[, split]"

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
        rows = list(_parquet(path, config) if path.suffix.lower() == ".parquet" else _lines(path, config))
        check_labels(str(path), [(line, label) for line, _, label, _ in rows], config.labels_are)
        listing = Listing(f"Expected: {self.title}.")
        with_split = any(split for *_, split in rows)
        for line, name, label, word in rows:
            split = split_of(word) if word else None
            if with_split and split is None:
                raise DataError(f"{path}, line {line}: the split {word!r} is none of train, val, test.")
            listing.add(split, Item(name, label, FilePicture(root / name)))
        return listing


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


def _columns(header: list[str], config: DataConfig, where: str) -> tuple[int, int, int | None]:
    """The positions of path, label and split in `header`."""
    lower = [name.strip().lower() for name in header]
    asked = (config.image_column or "path", config.label_column or "label")
    for name in asked:
        if name.lower() not in lower:
            raise DataError(f"{where} has no column {name!r}. {nearest(name, [column.strip() for column in header])}")
    split = lower.index("split") if "split" in lower else None
    return lower.index(asked[0].lower()), lower.index(asked[1].lower()), split


def _lines(path: Path, config: DataConfig) -> Iterator[Row]:
    delimiter = _DELIMITERS.get(path.suffix.lower(), ",")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark in front
            reader = csv.reader(file, delimiter=delimiter)
            columns: tuple[int, int, int | None] | None = None
            width = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                line = reader.line_num
                if columns is None:
                    width = len(cells)
                    if is_image_name(cells[0].strip()) and 2 <= width <= 3:  # no header: the first row is an image
                        columns = (0, 1, 2 if width == 3 else None)
                    else:
                        columns = _columns(cells, config, str(path))
                        continue
                if len(cells) != width:
                    hint = " A path with a comma needs quotes around it." if delimiter == "," else ""
                    raise DataError(f"{path}, line {line}: {len(cells)} columns, but the first line has {width}.{hint}")
                image, label, split = columns
                word = cells[split].strip() if split is not None else None
                yield line, cells[image].strip(), cells[label].strip(), word
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error


def _parquet(path: Path, config: DataConfig) -> Iterator[Row]:
    parquet = need_extra("pyarrow.parquet", "bench")
    arrow = need_extra("pyarrow", "bench")
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    image, label, split = _columns(list(table.column_names), config, str(path))
    columns = [table.column(position).to_pylist() for position in (image, label)]
    words = table.column(split).to_pylist() if split is not None else [None] * table.num_rows
    for row, (name, value, word) in enumerate(zip(*columns, words, strict=True), start=1):
        if name is None:
            raise DataError(f"{path}, row {row}: the path is empty.")
        yield row, str(name), "" if value is None else str(value), None if word is None else str(word)
