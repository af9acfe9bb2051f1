"""COCO's JSON of objects: a folder with annotations/*.json, one *.json, or Roboflow's _annotations.coco.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpeft.data.annotations import around, corners_of, note_counts, read_json_file, shape_of, split_in
from vpeft.data.config import DataConfig
from vpeft.data.images import readable
from vpeft.data.items import FilePicture, Item, Listing, SplitName, split_of
from vpeft.data.objects import Objects, Shape
from vpeft.data.problems import DataError, Problems
from vpeft.data.sources.registry import Claim, source

_ROBOFLOW = "_annotations.coco.json"
_LISTS = ("images", "annotations", "categories")


@source
class Coco:
    """Boxes are left, top, width, height; shapes are polygons or run-length codes; classes follow their ids; areas are
    those that scores tell small objects from large ones by.

    Images are looked for beside the JSON, in images/, and in folders named as the split (train2017, images/train), or
    in `root`.
    """

    name = "coco"
    title = "objects in COCO's JSON: a folder with annotations/*.json and images, or a *.json"
    targets = ("objects",)

    def claims(self, config: DataConfig) -> Claim:
        path = Path(config.source).expanduser()
        if config.target == "caption":  # COCO keeps captions in files of their own
            return Claim.NONE
        if path.suffix.lower() == ".json":
            return Claim.FORMAT if path.is_file() else Claim.NONE
        if not path.is_dir():
            return Claim.NONE
        # Other data sets keep notes in JSON too: for another target only the published names are a mark.
        pattern = "*.json" if config.target in self.targets else "instances*.json"
        marks = [*path.glob(_ROBOFLOW), *path.glob(f"*/{_ROBOFLOW}"), *path.glob(f"annotations/{pattern}")]
        return Claim.FORMAT if marks else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        path = Path(config.source).expanduser()
        listing = Listing(f"Expected: {self.title}.")
        alone = path.suffix.lower() == ".json"
        files = [(None, path)] if alone else list(_files(path))
        if not files:
            raise DataError(f"{path} holds no JSON of objects. {listing.expected}")
        root = path.parent if alone else path
        names: dict[str, None] = {}
        for split, file in files:
            one = _Annotations(file, config, listing.problems)
            names.update(dict.fromkeys(one.names.values()))
            for item in one.items(root, split):
                listing.add(split if len(files) > 1 else None, item)
        listing.labels = list(names)
        _differ(listing)
        return listing


def _files(root: Path) -> Iterator[tuple[SplitName | None, Path]]:
    """The files of annotations with their splits; the key None where there is one file for all."""
    own = root / _ROBOFLOW
    if own.is_file():
        yield None, own
        return
    nested = [(split_of(folder.name), folder / _ROBOFLOW) for folder in sorted(root.iterdir()) if folder.is_dir()]
    nested = [(split, file) for split, file in nested if split is not None and file.is_file()]
    if nested:
        yield from nested
        return
    folder = root / "annotations"
    found = sorted(folder.glob("*.json")) if folder.is_dir() else []
    of_objects = [file for file in found if file.name.startswith("instances")]
    found = of_objects or found
    splits = {file: split_in(file.stem) for file in found}
    if len(found) == 1:
        yield None, found[0]
        return
    stated = [(split, file) for file, split in splits.items() if split is not None]
    for split in {split for split, _ in stated}:
        several = [file.name for one, file in stated if one == split]
        if len(several) > 1:
            raise DataError(
                f"{folder} has several files for {split}: {', '.join(several)}. Keep one, or give its path."
            )
    yield from stated


@dataclass
class _Annotations:
    """One JSON file, sorted by image."""

    file: Path
    config: DataConfig
    problems: Problems
    names: dict[Any, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        told = read_json_file(self.file)
        if not isinstance(told, Mapping) or not all(isinstance(told.get(key, []), list) for key in _LISTS):
            raise DataError(f"{self.file} is not COCO's JSON: it needs the lists {', '.join(_LISTS)}.")
        if "images" not in told or "categories" not in told:
            missing = [key for key in ("images", "categories") if key not in told]
            raise DataError(f"{self.file} is not COCO's JSON of objects: it has no {' and no '.join(missing)}.")
        self.images = [self._mapping(one, "an image", ("id", "file_name")) for one in told["images"]]
        categories = [self._mapping(one, "a category", ("id", "name")) for one in told["categories"]]
        categories.sort(key=lambda one: (isinstance(one["id"], str), one["id"]))
        self.names = {one["id"]: str(one["name"]) for one in categories}
        self._once([one["id"] for one in categories], "the category id")
        self._once(list(self.names.values()), "the category")
        self._once([one["id"] for one in self.images], "the image id")
        self._once([one["file_name"] for one in self.images], "the image")
        self.of_image = self._by_image(told.get("annotations", []))

    def _mapping(self, one: Any, what: str, needed: tuple[str, ...]) -> Mapping[str, Any]:
        if not isinstance(one, Mapping) or any(not isinstance(one.get(key), (int, str)) for key in needed):
            raise DataError(f"{self.file}: {what} needs {' and '.join(needed)}, and there is {str(one)[:80]}.")
        return one

    def _once(self, values: list[Any], what: str) -> None:
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            shown = ", ".join(map(str, twice[:5]))
            raise DataError(f"{self.file} states {what} {shown} more than once, and nobody can tell which is meant.")

    def _by_image(self, annotations: list[Any]) -> dict[Any, list[Mapping[str, Any]]]:
        """The annotations of each image; those that fit nothing are noted and left out."""
        known = {one["id"] for one in self.images}
        found: dict[Any, list[Mapping[str, Any]]] = {}
        strangers: Counter[str] = Counter()
        nameless: Counter[str] = Counter()
        ids: Counter[Any] = Counter()
        for number, one in enumerate(annotations):
            if not isinstance(one, Mapping):
                raise DataError(f"{self.file}: annotation {number} is no object but {str(one)[:80]}.")
            if "id" in one:
                ids[str(one["id"])] += 1
            image, category = one.get("image_id"), one.get("category_id")
            if not isinstance(image, (int, str)) or image not in known:
                strangers[f"image {image}"] += 1
            elif not isinstance(category, (int, str)) or category not in self.names:
                nameless[f"category {category}"] += 1
            else:
                found.setdefault(image, []).append(one)
        note_counts(self.problems, "unknown_image", strangers, f"annotations in {self.file.name}")
        note_counts(self.problems, "unknown_category", nameless, f"objects in {self.file.name}")
        for one, count in ids.items():
            if count > 1:
                self.problems.add("same_id", f"annotation {one} in {self.file.name}", f"{count} times")
        return found

    def items(self, root: Path, split: SplitName | None) -> Iterator[Item]:
        """The images with their objects, named by their paths from `root`."""
        places = list(self._places(root, split))
        for image in self.images:
            text = str(image["file_name"])
            file = next((place / text for place in places if (place / text).is_file()), places[0] / text)
            inside = file.is_relative_to(root)
            name = readable(file.relative_to(root).as_posix() if inside else f"{split or 'all'}/{text}")
            yield Item(name, "", FilePicture(file), self._objects(image, name))

    def _places(self, root: Path, split: SplitName | None) -> Iterator[Path]:
        """Folders in which the images may be, the likeliest first."""
        if self.config.root is not None:
            yield self.config.root.expanduser()
        if self.file.name == _ROBOFLOW:
            yield self.file.parent
        last = self.file.stem.rsplit("_", 1)[-1]  # train2017 of instances_train2017
        above = self.file.parent.parent if self.file.parent.name == "annotations" else self.file.parent
        for base in dict.fromkeys((above, root)):
            for inner in (last, split):
                if inner is not None:
                    for folder in (base / inner, base / "images" / inner):
                        if folder.is_dir():
                            yield folder
            if (base / "images").is_dir():
                yield base / "images"
        yield above
        yield self.file.parent

    def _objects(self, image: Mapping[str, Any], name: str) -> Objects:
        boxes, labels, crowd, areas = [], [], [], []
        shapes: list[Shape | None] = []
        faults: list[str] = []
        for one in self.of_image.get(image["id"], ()):
            shape: Shape | None = None
            try:
                shape = shape_of(one.get("segmentation"))
            except ValueError as error:
                faults.append(str(error))
            form = self.config.box_format or "sides"
            boxes.append(corners_of(one["bbox"], form) if one.get("bbox") is not None else around(shape))
            labels.append(self.names[one["category_id"]])
            crowd.append(bool(one.get("iscrowd", 0)))
            area = one.get("area")
            areas.append(float(area) if isinstance(area, (int, float)) else 0.0)
            shapes.append(shape)
        if faults:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            self.problems.add("shape", name, f"{faults[0]}{more}")
        height, width = image.get("height"), image.get("width")
        stated = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
        size = (int(height), int(width)) if stated else None  # type: ignore[arg-type]
        return Objects.of(boxes, labels, crowd=crowd, shapes=shapes, size=size, areas=areas)


def _differ(listing: Listing) -> None:
    """Raise `DataError` where two images have one name."""
    items = [*listing.whole, *(item for of_split in listing.splits.values() for item in of_split)]
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise DataError(f"{len(twice)} images are listed in more than one split or file, the first is {twice[0]}.")
