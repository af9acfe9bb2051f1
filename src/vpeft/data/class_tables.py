"""Files that name the classes of masks: one name a line, or a table of names and colours as CamVid's and CVAT's."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

from vpeft.data.annotations import read_lines
from vpeft.data.mapped_picture import Colour
from vpeft.data.problems import DataError

FILES = ("classes.txt", "labels.txt", "classes.csv", "class_dict.csv", "label_colors.txt", "labelmap.txt")
# Names of pixels that do not count.
_IGNORED = ("void", "ignore", "ignored", "unlabelled", "unlabeled")


class ClassTable(NamedTuple):
    """The names of the classes in the order of their numbers, and their colours where the file tells them.

    `ignored` are the colours of pixels that do not count, called void or ignore; those names are no classes.
    """

    names: list[str]
    colours: tuple[Colour, ...] = ()
    ignored: tuple[Colour, ...] = ()


def find_class_table(*folders: Path) -> ClassTable | None:
    """The first table in the folders, where there is one; raises `DataError` for a line that cannot be read."""
    for folder in folders:
        for name in FILES:
            if (folder / name).is_file():
                return _read(folder / name)
    return None


def _read(file: Path) -> ClassTable:
    rows = [_row(line) for line in read_lines(file) if not line.startswith("#")]
    if rows and not any(cell.isdigit() for cell in rows[0]) and len(rows[0]) > 1:
        rows = rows[1:]  # a header: name, r, g, b
    found = [_named(row, f"{file}, {' '.join(row)!r}") for row in rows]
    coloured = [(name, colour) for name, colour in found if colour is not None]
    if not coloured:
        return ClassTable([name for name, _ in found])
    if len(coloured) < len(found):
        raise DataError(
            f"{file} gives some classes a colour and some not; each line needs a name and red, green, blue."
        )
    counted = [(name, colour) for name, colour in coloured if name.lower() not in _IGNORED]
    if len({colour for _, colour in coloured}) < len(coloured):
        raise DataError(f"{file} gives two classes one colour.")
    ignored = tuple(colour for name, colour in coloured if name.lower() in _IGNORED)
    return ClassTable([name for name, _ in counted], tuple(colour for _, colour in counted), ignored)


def _row(line: str) -> list[str]:
    """The cells of a line: by commas, by CVAT's colons, or by spaces where numbers follow or precede a name."""
    if match := re.fullmatch(r"([^:]+):(\d+),(\d+),(\d+):.*", line):
        return list(match.groups())
    if match := re.fullmatch(r"(\d+)\s+(\d+)\s+(\d+)\s+(.+)", line):
        return [match[4].strip(), match[1], match[2], match[3]]
    if match := re.fullmatch(r"(.*\S)\s+(\d+)\s+(\d+)\s+(\d+)", line):
        return list(match.groups())
    return [cell.strip() for cell in next(csv.reader([line]))] if "," in line else [line]


def _named(row: list[str], where: str) -> tuple[str, Colour | None]:
    """A name and its colour."""
    if len(row) == 1:
        return row[0], None
    cells = row[1:4] if len(row) == 4 else row[-3:]
    name = row[0] if len(row) <= 4 else next((cell for cell in row if not cell.isdigit()), row[0])
    if len(row) < 4 or not all(re.fullmatch("[0-9]{1,3}", cell) and int(cell) <= 255 for cell in cells):
        raise DataError(f"{where}: a line needs a name and red, green and blue from 0 to 255.")
    return name, (int(cells[0]), int(cells[1]), int(cells[2]))
