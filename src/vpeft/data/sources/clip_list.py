"""Lists of clips as the benchmarks of action recognition keep them, and tables of videos with a header.

One clip a line, the path first and the label last, with spaces, tabs or commas between:

    path label                 a video, or a folder of frames
    path frames label          a folder of frames and how many there are; the folder itself says so too
    path start end label       a part: whole numbers are frames from 0, the last not included; others are seconds

A list is one file, or a folder with train, val and test lists. Paths are relative to `root`, by default to the list.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vpeft.data.clips.clip import ClipFile, ClipFrames, Part
from vpeft.data.clips.video_file import is_video_name
from vpeft.data.config import DataConfig, TargetName
from vpeft.data.images import is_image_name, readable
from vpeft.data.items import Item, Listing, SplitName, split_of
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.table_cells import readable_table
from vpeft.data.target import target_of
from vpeft.guarded import read_bytes, text_of

_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".list"})
_PATHS = ("path", "video", "file", "clip", "video_path", "filename")
# A list of Kinetics-700 has 40 MB.
_MOST_BYTES = 2**30
_LOOKED_AT = 64 * 1024
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?")


class Row(NamedTuple):
    """One clip of a list: line number, path, part, cells of the target, and the name of its split."""

    line: int
    path: str
    part: Part | None
    cells: list[str]
    split: str | None = None


@source
class ClipList:
    """The lists of the benchmarks; a table of videos with a header may have a column `split`."""

    name = "clip_list"
    title = "a list of clips, `path label` or `path start end label`, or a folder with such train, val and test lists"
    targets: tuple[TargetName, ...] = ("label", "labels", "values")
    gives_clips = True

    def claims(self, config: DataConfig) -> Claim:
        root = Path(config.source).expanduser()
        files = list(_lists(root).values()) if root.is_dir() else [root]
        if not files or not all(file.suffix.lower() in _SUFFIXES and file.is_file() for file in files):
            return Claim.NONE
        return Claim.FORMAT if all(_names_clips(file, config) for file in files) else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        if not path.is_dir():
            _add(listing, path, None, config)
            return listing
        files = _lists(path)
        if not files:
            raise DataError(f"{path} has no list named train, val or test.")
        for split, file in files.items():
            _add(listing, file, split, config)
        return listing


def _lists(folder: Path) -> dict[SplitName, Path]:
    """The lists of the splits in a folder."""
    found: dict[SplitName, Path] = {}
    for path in sorted(folder.iterdir()):
        split = split_of(path.stem)
        if split is not None and path.suffix.lower() in _SUFFIXES and path.is_file():
            if split in found:
                raise DataError(f"{folder} has two lists for {split}: {found[split].name} and {path.name}. Keep one.")
            found[split] = path
    return found


def _names_clips(file: Path, config: DataConfig) -> bool:
    """Whether the first lines of a file name clips."""
    try:
        with file.open("rb") as stream:
            start = stream.read(_LOOKED_AT).decode("utf-8", "ignore")
    except OSError:
        return False
    lines = [line for line in start.splitlines()[:3] if line.strip()]
    for line in lines:
        for cell in re.split(r"[\s,;]+", line):
            name = cell.strip("\"'")
            if is_video_name(name) and not is_image_name(name):
                return True
            if config.clip is not None and "/" in name and not Path(name).suffix:
                return True
    if config.clip is None or not lines:
        return False
    first = re.split(r"[\s,]+", lines[0].strip())[0].strip("\"'")
    return is_video_name(first) or (_root(config, file) / first).is_dir()


def _root(config: DataConfig, file: Path) -> Path:
    return file.parent if config.root is None else config.root.expanduser()


def _add(listing: Listing, file: Path, split: SplitName | None, config: DataConfig) -> None:
    text = text_of(read_bytes(file, f"The list {file}", DataError, _MOST_BYTES), f"The list {file}", DataError)
    rows, names = _rows(text, file, config)
    target = target_of(config)
    root = _root(config, file)
    given = target.of_table([(row.line, row.cells) for row in rows], names, config, str(file), root)
    seen: dict[str, int] = {}
    for row, one in zip(rows, given, strict=True):
        path = root / row.path
        name = readable(Path(row.path).as_posix())
        if row.part is not None:
            name = f"{name}[{row.part[0]:g}:{'' if row.part[1] is None else format(row.part[1], 'g')}]"
        if one is None:
            listing.problems.add("unlabelled", name)
            continue
        # A clip that is listed twice is told by its line, since names are what splits go by.
        if name in seen:
            name = f"{name}#{row.line}"
        seen[name] = row.line
        picture = ClipFrames(path, row.part) if path.is_dir() else ClipFile(path, row.part)
        listing.add(_split(row, split, file), Item(name, one.text, picture, one.value))


def _split(row: Row, split: SplitName | None, file: Path) -> SplitName | None:
    if row.split is None:
        return split
    found = split_of(row.split)
    if found is None:
        raise DataError(f"{file}, line {row.line}: the split {row.split!r} is none of train, val, test.")
    return found


def _rows(text: str, file: Path, config: DataConfig) -> tuple[list[Row], list[str]]:
    """The rows of a list, and the names of the columns of its target."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    comma = "\t" if "\t" in first else "," if "," in first else None
    if comma is not None:
        with readable_table(file):
            table = [
                (number, [cell.strip() for cell in cells])
                for number, cells in enumerate(csv.reader(text.splitlines(), delimiter=comma), start=1)
                if any(cell.strip() for cell in cells)
            ]
        header = [cell.lower() for cell in table[0][1]] if table else []
        place = next((header.index(name) for name in _PATHS if name in header), None)
        if place is not None:
            return _of_table(table, place, file, config)
        return [_of_cells(cells, number, file) for number, cells in table], ["label"]
    return [
        _of_cells(_words(line, file, number), number, file)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ], ["label"]


def _words(line: str, file: Path, number: int) -> list[str]:
    """The cells of a line with spaces between; spaces within the path are kept where the rest is plain."""
    words = line.split()
    if len(words) < 2:
        raise DataError(f"{file}, line {number}: it has {len(words)} word; a clip needs a path and a label.")
    if len(words) > 3 and all(_NUMBER.fullmatch(word) for word in words[-3:-1]):
        return [" ".join(words[:-3]), *words[-3:]]
    if len(words) > 2 and _NUMBER.fullmatch(words[-2]) and not is_video_name(" ".join(words[:-1])):
        return [" ".join(words[:-2]), *words[-2:]]
    return [" ".join(words[:-1]), words[-1]]


def _of_cells(cells: Sequence[str], line: int, file: Path) -> Row:
    path, *numbers, label = cells
    if len(numbers) not in (0, 1, 2) or not all(_NUMBER.fullmatch(number) for number in numbers):
        raise DataError(
            f"{file}, line {line}: {len(cells)} columns; a clip is `path label`, `path frames label` or `path start end"
            " label`, the middle ones numbers."
        )
    part: Part | None = None
    if len(numbers) == 1:
        part = (0, int(float(numbers[0])))
    elif numbers:
        part = (_edge(numbers[0]), _edge(numbers[1]))
    return Row(line, path, part, [label])


def _edge(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _of_table(
    table: Sequence[tuple[int, Sequence[str]]], place: int, file: Path, config: DataConfig
) -> tuple[list[Row], list[str]]:
    """The rows of a table with a header."""
    _, header = table[0]
    small = [cell.lower() for cell in header]
    places = target_of(config).columns(header, config, str(file))
    edges = [small.index(name) if name in small else None for name in ("start", "end")]
    split = small.index("split") if "split" in small else None
    rows = []
    for line, cells in table[1:]:
        if len(cells) != len(header):
            raise DataError(f"{file}, line {line}: {len(cells)} columns, but the first line has {len(header)}.")
        stated = [cells[edge] if edge is not None else "" for edge in edges]
        for text in stated:
            if text and not _NUMBER.fullmatch(text):
                raise DataError(f"{file}, line {line}: {text!r} is no number of a frame or of seconds.")
        part: Part | None = None
        if any(stated):
            part = (_edge(stated[0] or "0"), _edge(stated[1]) if stated[1] else None)
        rows.append(
            Row(line, cells[place], part, [cells[at] for at in places], cells[split] if split is not None else None)
        )
    return rows, [header[at] for at in places]
