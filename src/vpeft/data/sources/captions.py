"""Images with captions: a folder with captions.csv, a list of paths and captions, or COCO's JSON of captions."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpeft.data.annotations import json_rows, read_json_file, split_in
from vpeft.data.config import DataConfig
from vpeft.data.items import ArrayPicture, FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.pocket_captions import SIZES, captioned_split
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.table_cells import first_of, readable_table
from vpeft.data.targets.caption import captions_given, first_name
from vpeft.errors import nearest

_LISTS = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_IMAGE_COLUMNS = ("path", "image", "file_name", "filename", "image_name")
_DRAWN = "pocket-captions"


@source
class Captions:
    """An image with several captions has a line, or an annotation, for each of them.

    Paths start from `root`, from the list's own folder, or from images/ in it; COCO's also from folders named as the
    split (train2017).
    """

    name = "captions"
    title = "images with captions: a folder with captions.csv or .jsonl (path, caption[, split]), or COCO's *.json"
    targets = ("caption",)

    def claims(self, config: DataConfig) -> Claim:
        path = Path(config.source).expanduser()
        if path.is_dir() and any((path / name).is_file() for name in _LISTS):
            return Claim.FORMAT
        if config.target not in self.targets:
            return Claim.NONE
        if path.is_dir():
            return Claim.FORMAT if any(path.glob("annotations/captions*.json")) else Claim.NONE
        return (
            Claim.FORMAT if path.suffix.lower() in (*_DELIMITERS, ".json", ".jsonl") and path.is_file() else Claim.NONE
        )

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        files = [path] if path.is_file() else [path / name for name in _LISTS if (path / name).is_file()]
        files = files or sorted(path.glob("annotations/captions*.json"))
        if not files:
            raise DataError(f"{path} holds no captions. {listing.expected}")
        found: dict[tuple[str, SplitName | None], tuple[Path, list[str]]] = {}
        for file in files:
            stated = split_in(file.stem) if len(files) > 1 else None
            rows = _coco_rows(file) if file.suffix.lower() == ".json" else _list_rows(file, config)
            base = file.parent.parent if file.parent.name == "annotations" else file.parent
            for name, text, split in rows:
                place = _file(name, config, base, file)
                shown = place.relative_to(base).as_posix() if place.is_relative_to(base) else name
                found.setdefault((shown, split or stated), (place, []))[1].append(text)
        for (name, split), (place, texts) in found.items():
            given = captions_given(texts)
            if given.value:
                listing.add(split, Item(name, given.text, FilePicture(place), given.value))
            else:
                listing.problems.add("unlabelled", name, "its caption is empty")
        return listing


def _file(name: str, config: DataConfig, base: Path, file: Path) -> Path:
    """The image, in the first place that has it."""
    last = file.stem.rsplit("_", 1)[-1]  # train2017 of captions_train2017
    places = [*([config.root.expanduser()] if config.root is not None else []), base, base / "images", base / last]
    places += [base / "images" / last]
    return next((place / name for place in places if (place / name).is_file()), places[0] / name)


def _coco_rows(file: Path) -> Iterable[tuple[str, str, SplitName | None]]:
    told = read_json_file(file)
    lists = ("images", "annotations")
    if not isinstance(told, Mapping) or not all(isinstance(told.get(key), list) for key in lists):
        raise DataError(f"{file} is not COCO's JSON of captions: it needs the lists {' and '.join(lists)}.")
    names: dict[Any, str] = {}
    for image in told["images"]:
        if not isinstance(image, Mapping) or not isinstance(image.get("file_name"), str) or "id" not in image:
            raise DataError(f"{file}: an image needs id and file_name, and there is {str(image)[:80]}.")
        names[image["id"]] = image["file_name"]
    for one in told["annotations"]:
        if not isinstance(one, Mapping) or not isinstance(one.get("caption"), str):
            raise DataError(f"{file}: an annotation has no caption: {str(one)[:80]}. Is it a file of objects?")
        if one.get("image_id") not in names:
            raise DataError(f"{file}: a caption is of image {one.get('image_id')!r}, which is not listed.")
        yield names[one["image_id"]], one["caption"], None


def _list_rows(file: Path, config: DataConfig) -> Iterable[tuple[str, str, SplitName | None]]:
    if file.suffix.lower() == ".jsonl":
        told = json_rows(file)
        names = list(dict.fromkeys(name for row in told for name in row))
        lines = [names, *([str(row.get(name, "")) for name in names] for row in told)] if told else []
    else:
        with readable_table(file), file.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.reader(stream, delimiter=_DELIMITERS[file.suffix.lower()]))
    if not lines:
        raise DataError(f"{file} is empty.")
    header, *rows = lines
    image = first_of(header, (config.image_column,) if config.image_column else _IMAGE_COLUMNS)
    text = first_of(header, (config.label_column or first_name(header),))
    split = first_of(header, ("split",))
    if image is None or text is None:
        wanted = "path" if image is None else "caption"
        raise DataError(f"{file} has no column {wanted!r}. {nearest(wanted, [one.strip() for one in header])}")
    for number, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DataError(f"{file}, line {number} has {len(row)} cells, and the header {len(header)}.")
        of = split_of(row[split]) if split is not None and row[split].strip() else None
        if split is not None and row[split].strip() and of is None:
            raise DataError(f"{file}, line {number}: the split {row[split]!r} is none of train, val, test.")
        yield row[image].strip(), row[text], of


@source
class PocketCaptions:
    """Drawn figures with captions, with splits of their own; half of val and test have a new composition."""

    name = _DRAWN
    title = f"the drawn set of pictures with captions, '{_DRAWN}'"
    targets = ("caption",)

    def claims(self, config: DataConfig) -> Claim:
        if config.source != _DRAWN:
            return Claim.NONE
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

    def names(self) -> Iterable[str]:
        return [_DRAWN]

    def read(self, config: DataConfig) -> Listing:
        listing = Listing(f"Expected: {self.title}.")
        splits: tuple[SplitName, ...] = ("train", "val", "test")
        assert set(splits) == set(SIZES)
        for split in splits:
            images, captions = captioned_split(split)
            for index, text in enumerate(captions):
                given = captions_given([text])
                listing.add(split, Item(f"{split}/{index:05d}", text, ArrayPicture(images, index), given.value))
        return listing
