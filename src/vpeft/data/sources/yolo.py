"""YOLO's text files: data.yaml with the classes, images/ and labels/ with a line for each object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vpeft.data.annotations import image_size, note_counts, read_lines
from vpeft.data.config import DataConfig
from vpeft.data.images import files_below, pictures_among, readable
from vpeft.data.items import FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.objects import Objects, Polygons, Shape
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.guarded import MEBI, read_bytes, text_of

# More classes than any data set has.
_CLASSES = 100_000
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@source
class Yolo:
    """A line is a class number and, as shares of the image's sides, either the centre and the sides of a box or the
    points of a polygon. An image without a text file has no object.
    """

    name = "yolo"
    title = "YOLO: a folder with data.yaml, images/ and labels/*.txt, or the path of its yaml file"
    targets = ("objects",)

    def claims(self, config: DataConfig) -> Claim:
        path = Path(config.source).expanduser()
        if path.suffix.lower() in (".yaml", ".yml"):
            return Claim.FORMAT if path.is_file() else Claim.NONE
        if not path.is_dir():
            return Claim.NONE
        if _yaml(path) is not None:
            return Claim.FORMAT
        text = next((path / "labels").rglob("*.txt"), None) if (path / "labels").is_dir() else None
        return Claim.FORMAT if (path / "images").is_dir() and text is not None else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        file = _yaml(path) if path.is_dir() else path
        told = {} if file is None else _told(file)
        root = _root(path if path.is_dir() else path.parent, told)
        names = _names(told, root, config)
        listing = Listing(f"Expected: {self.title}.", labels=None if names is None else list(names.values()))
        unknown: Counter[str] = Counter()
        seen = 0
        for split, image in _images(root, told, listing):
            inside = image.is_relative_to(root)
            name = readable(image.relative_to(root).as_posix() if inside else image.as_posix())
            text = _label_file(image)
            seen += text.is_file()
            objects = _objects(image, text, names, unknown)
            listing.add(split, Item(name, "", FilePicture(image), objects))
        if not seen and (listing.whole or listing.splits):
            raise DataError(f"{root}: no image has its text file in labels/. {listing.expected}")
        note_counts(listing.problems, "unknown_category", unknown, "objects")
        return listing


def _yaml(root: Path) -> Path | None:
    """The yaml file that tells classes and splits, where there is one."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    return None


def _told(file: Path) -> Mapping[str, Any]:
    text = text_of(read_bytes(file, str(file), DataError, MEBI), str(file), DataError)
    try:
        told = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file} is not usable YAML: {error}.") from None
    if not isinstance(told, Mapping):
        raise DataError(f"{file} tells nothing; it needs names and train.")
    return told


def _root(folder: Path, told: Mapping[str, Any]) -> Path:
    """The folder that paths start from: `path`, where there is such a folder, or that of the yaml file."""
    stated = told.get("path")
    if not isinstance(stated, str):
        return folder
    return next((one for one in (Path(stated).expanduser(), folder / stated) if one.is_dir()), folder)


def _names(told: Mapping[str, Any], root: Path, config: DataConfig) -> dict[int, str] | None:
    """The name of each class number; None where nothing tells them, and numbers are names."""
    names = config.label_names or told.get("names")
    if names is None:
        file = next((root / one for one in ("classes.txt", "labels/classes.txt") if (root / one).is_file()), None)
        names = None if file is None else read_lines(file)
    if names is None:
        count = told.get("nc")
        return {number: str(number) for number in range(min(count, _CLASSES))} if isinstance(count, int) else None
    named = isinstance(names, (Mapping, list, tuple))
    pairs = list(names.items()) if isinstance(names, Mapping) else list(enumerate(names)) if named else []
    if not named or not all(isinstance(n, int) and isinstance(one, (str, int, float)) for n, one in pairs):
        raise DataError(f"{root}: names is a list of the classes, or a number and a name for each.")
    return {number: str(name) for number, name in sorted(pairs)}


def _images(root: Path, told: Mapping[str, Any], listing: Listing) -> Iterator[tuple[SplitName | None, Path]]:
    """The images with their splits, from folders or lists that the yaml file names, or from images/."""
    places: dict[SplitName | None, list[Path]] = {}
    for split in _SPLITS:
        stated = told.get(split)
        several = stated if isinstance(stated, list) else [stated]
        found = [place for one in several if isinstance(one, str) for place in [_place(root, one)] if place is not None]
        if found:
            places[split] = found
    if not places:
        inner = {folder: split_of(folder.name) for folder in sorted((root / "images").glob("*/"))}
        if inner and all(inner.values()):
            for folder, split_name in inner.items():
                places.setdefault(split_name, []).append(folder)
        else:
            places = {None: [root / "images"]}
    for split_or_none, several_places in places.items():
        for place in several_places:
            yield from ((split_or_none, image) for image in _listed(root, place, listing))


def _place(root: Path, text: str) -> Path | None:
    """A stated folder or list; Roboflow writes ../train/images for what lies beside the yaml file."""
    for one in (Path(text), root / text, root / text.removeprefix("../"), root / "images" / text):
        if one.is_absolute() and one.exists():
            return one
        if (found := root / one).exists():
            return found
    return None


def _listed(root: Path, place: Path, listing: Listing) -> list[Path]:
    """The images in a folder, or those that a text file lists."""
    if place.suffix == ".txt":
        return [one if one.is_absolute() else root / one for one in map(Path, read_lines(place))]
    if not place.is_dir():
        raise DataError(f"There is no folder {place}. {listing.expected}")
    below = files_below(place)
    below.note(listing.problems, root)
    pictures = pictures_among(below.files)
    for file in below.files:
        if file not in pictures and file.suffix not in (".txt", ".cache"):
            listing.problems.add("ignored", readable(file.as_posix()))
    return [file for file in below.files if file in pictures]


def _label_file(image: Path) -> Path:
    """The text file of an image: the last folder images in its path becomes labels."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _objects(image: Path, text: Path, names: Mapping[int, str] | None, unknown: Counter[str]) -> Objects:
    lines = read_lines(text) if text.is_file() else []
    size = image_size(image) if lines else None
    if not lines or size is None:  # of an image that cannot be read the check says why
        return Objects.of([], [], size=size)
    height, width = size
    boxes, labels = [], []
    shapes: list[Shape | None] = []
    for number, line in enumerate(lines, start=1):
        cells = _numbers(line, f"{text}, line {number}")
        label = int(cells[0])
        if names is not None and label not in names:
            unknown[f"category {label}"] += 1
            continue
        labels.append(str(label) if names is None else names[label])
        if len(cells) == 5:
            across, down, wide, high = cells[1] * width, cells[2] * height, cells[3] * width, cells[4] * height
            boxes.append((across - wide / 2, down - high / 2, across + wide / 2, down + high / 2))
            shapes.append(None)
            continue
        points = tuple(one * (height if place % 2 else width) for place, one in enumerate(cells[1:]))
        boxes.append((min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])))
        shapes.append(Polygons.of([points]))
    return Objects.of(boxes, labels, shapes=shapes, size=size)


def _numbers(line: str, where: str) -> list[float]:
    try:
        cells = [float(cell) for cell in line.split()]
    except ValueError:
        raise DataError(f"{where}: {line[:60]!r} is not all numbers.") from None
    if (len(cells) != 5 and (len(cells) < 7 or len(cells) % 2 == 0)) or not cells[0].is_integer():
        raise DataError(
            f"{where}: {len(cells)} numbers. A line is a class number and the four numbers of a box, or a class number"
            " and the points of a polygon, at least three."
        )
    return cells
