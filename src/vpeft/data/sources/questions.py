"""Images with questions and answers: a JSONL or JSON list, a folder that holds one, and the drawn set."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpeft.data.annotations import json_rows
from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, ArrayPicture, FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.pocket_questions import questioned_split
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.table_cells import readable_table
from vpeft.data.targets.answer import ANSWERS, QUESTIONS, answer_given
from vpeft.data.targets.caption import captions_given
from vpeft.errors import nearest

_LISTS = ("questions.csv", "questions.tsv", "questions.jsonl", "questions.json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# What lists and checks of images call every one of them: questions are no classes.
_LABEL = "question"
_IMAGES = ("image", "path", "file_name", "filename", "image_name")
_DRAWN = "pocket-questions"


@source
class Questions:
    """Each line is a question about an image, and an image may have several.

    A JSONL file has a mapping in each line, with `image`, `question` and `answer` (a text, or a list of right ones),
    and perhaps `split`; tables have the same columns. Paths start from `root`, the folder of the file, or images/
    in it. The second question about an image is named `image#2`.
    """

    name = "questions"
    title = "images with questions: a .jsonl or .csv (image, question, answer[, split]), or a folder with questions.*"
    targets = ("answer",)

    def claims(self, config: DataConfig) -> Claim:
        path = Path(config.source).expanduser()
        if path.is_dir() and any((path / name).is_file() for name in _LISTS):
            return Claim.FORMAT
        suffix = path.suffix.lower()
        if config.target in self.targets and suffix in (*_DELIMITERS, ".jsonl", ".json") and path.is_file():
            return Claim.FORMAT
        return Claim.LIKENESS if suffix == ".jsonl" and path.is_file() else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        file = path
        if path.is_dir():
            file = next((path / name for name in _LISTS if (path / name).is_file()), path / _LISTS[0])
        if not file.is_file():
            raise DataError(f"There is no list of questions {file}. Expected: {self.title}.")
        listing = Listing(f"Expected: {self.title}.")
        base = file.parent if config.root is None else config.root.expanduser()
        seen: Counter[str] = Counter()
        for number, row in enumerate(_rows(file), start=1):
            where = f"{file}, line {number}"
            image = _named(row, (config.image_column,) if config.image_column else _IMAGES, where)
            answers = _named(row, (config.label_column,) if config.label_column else ANSWERS, where)
            given = answer_given(str(_named(row, QUESTIONS, where)), _texts(answers))
            split = split_of(str(row["split"])) if row.get("split") else None
            if row.get("split") and split is None:
                raise DataError(f"{where}: the split {row['split']!r} is none of train, val, test.")
            name = str(image)
            places = [base / name, base / "images" / name]
            found = next((place for place in places if place.is_file()), places[0])
            if given.value is None:
                listing.problems.add("unlabelled", name, f"line {number}: the question or the answer is empty")
                continue
            seen[name] += 1
            unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
            listing.add(split, Item(unique, _LABEL, FilePicture(found), given.value))
        return listing


def _rows(file: Path) -> Iterable[Mapping[str, Any]]:
    """The lines of a list by the names of its columns."""
    delimiter = _DELIMITERS.get(file.suffix.lower())
    if delimiter is None:
        yield from json_rows(file)
        return
    with readable_table(file), file.open(encoding="utf-8-sig", newline="") as stream:
        for row in csv.DictReader(stream, delimiter=delimiter):
            yield {name.strip(): value for name, value in row.items() if name is not None and value is not None}


def _named(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise DataError(f"{where} has no {names[0]!r}. {nearest(names[0], list(row))}")


def _texts(answers: Any) -> list[str]:
    """Answers as texts; VQA's own form has a mapping for each."""
    listed = answers if isinstance(answers, list) else [answers]
    return [str(one.get("answer", "")) if isinstance(one, Mapping) else str(one) for one in listed]


@source
class PocketQuestions:
    """Drawn figures with three questions each, or with a caption, with splits of their own."""

    name = _DRAWN
    title = f"the drawn set of pictures with questions (or captions), '{_DRAWN}'"
    targets = ("answer", "caption")

    def claims(self, config: DataConfig) -> Claim:
        if config.source != _DRAWN:
            return Claim.NONE
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        return [_DRAWN]

    def read(self, config: DataConfig) -> Listing:
        listing = Listing(f"Expected: {self.title}.")
        for split in SPLITS:
            images, captions, asked = questioned_split(split)
            for index, text in enumerate(captions):
                _add(listing, split, index, ArrayPicture(images, index), text, asked[index], config.target)
        return listing


def _add(
    listing: Listing, split: SplitName, index: int, picture: ArrayPicture, text: str, asked: Any, target: str
) -> None:
    if target == "caption":
        given = captions_given([text])
        listing.add(split, Item(f"{split}/{index:05d}", text, picture, given.value))
        return
    for number, one in enumerate(asked):
        given = answer_given(one.asked, [one.answer])
        listing.add(split, Item(f"{split}/{index:05d}/{number}", _LABEL, picture, given.value))
