"""Data sets of the Hugging Face library: 'hf:beans' from the hub, 'hf:owner/name:configuration', or one saved to disk.

Images stay encoded until they are needed and are decoded by vpeft, so that the rules of `images.py` hold for them too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vpeft.data.annotations import corners_of, note_counts, shape_of
from vpeft.data.clips.clip import ClipSample
from vpeft.data.config import DataConfig
from vpeft.data.items import Item, Listing, SamplePicture, split_of
from vpeft.data.objects import Objects, Shape
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.data.targets import Given, Mask, Target, Values, labels_given, target_of, values_given
from vpeft.data.targets.depth import DepthMap
from vpeft.errors import nearest, need_extra

_PREFIX = "hf:"

_MASK_COLUMNS = ("mask", "label", "annotation", "segmentation_mask", "segmentation", "seg", "labels")
_DEPTH_COLUMNS = ("depth", "depth_map", "depths", "label", "annotation")
# Names of the parts of a column of objects.
_BOXES = ("bbox", "bboxes", "boxes", "box")
_CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class")
_SHAPES = ("segmentation", "segmentations", "polygons")
_CROWDS = ("iscrowd", "is_crowd", "crowd")

# What `save_to_disk` leaves in the folder of several splits, and of one.
_MARKS = ("dataset_dict.json", "state.json")


@source
class HuggingFace:
    """The image column is the one of type Image or Video, the label column the one of type ClassLabel, unless stated.

    Several labels are a sequence of ClassLabel or of texts, values are numbers, and a mask or a depth map is a second
    column of type Image. Objects are a column of `bbox` and `category`, and perhaps `segmentation`, `area` and
    `iscrowd`, boxes as COCO's (left, top, width, height) unless `box_format` says otherwise.
    """

    name = "hf"
    targets = ("label", "labels", "values", "mask", "objects", "depth")
    title = "a data set of Hugging Face, 'hf:owner/name', or a folder that its save_to_disk made"

    def claims(self, config: DataConfig) -> Claim:
        marked = config.source.startswith(_PREFIX) or _is_saved(Path(config.source).expanduser())
        return Claim.MARK if marked else Claim.NONE

    def names(self) -> Iterable[str]:
        return ()

    def read(self, config: DataConfig) -> Listing:
        library = need_extra("datasets", "hf")
        listing = Listing(f"Expected: {self.title}.")
        loaded = _load(library, config)
        splits = loaded if isinstance(loaded, Mapping) else {"": loaded}
        for word, dataset in splits.items():
            split = split_of(word)
            if split is None and len(splits) > 1:
                listing.problems.add("ignored", f"split {word!r}", "none of train, val, test")
                continue
            # A lone split of any name is the whole, unless it is a split for testing only.
            alone = split is None or (len(splits) == 1 and split == "train")
            _add(library, listing, dataset, None if alone else split, config)
        return listing


def _is_saved(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _MARKS)


def _load(library: Any, config: DataConfig) -> Any:
    text = config.source.removeprefix(_PREFIX)
    path = Path(text).expanduser()
    try:
        if _is_saved(path):
            return library.load_from_disk(str(path))
        name, _, configuration = text.partition(":")
        cache = str(config.root.expanduser()) if config.root else None
        return library.load_dataset(name, configuration or None, cache_dir=cache)
    except Exception as error:  # the library and its transports raise too many kinds to list
        raise DataError(
            f"Hugging Face cannot give {text!r}: {type(error).__name__}: {error}. "
            "Check the name and the network, or give a folder made by its save_to_disk."
        ) from error


def _add(library: Any, listing: Listing, dataset: Any, split: Any, config: DataConfig) -> None:
    target = target_of(config)
    if target.name == "objects":
        _add_objects(library, listing, dataset, split, config)
        return
    image, columns = _columns(library, dataset, config, target)
    for column in (image, *(columns if target.on_pixels else ())):
        if isinstance(dataset.features[column], library.Image):
            dataset = dataset.cast_column(column, library.Image(decode=False))
    videos = isinstance(dataset.features[image], library.Video)
    if videos and config.clip is None:
        raise DataError(
            f"{config.source}, column {image!r}, holds videos. Say that frames are to be taken of them, for instance"
            " with --clip.frames 16."
        )
    if videos:
        dataset = dataset.cast_column(image, library.Video(decode=False))
    names = _class_names(library, dataset.features[columns[0]])
    if target.on_pixels:
        listing.labels = config.label_names or None
    elif isinstance(target, Values):
        listing.labels = columns
    elif names is not None:
        listing.labels = names
    prefix = f"{split}/" if split else ""
    rows = zip(*(dataset[column] for column in columns), strict=True) if not target.on_pixels else None
    where = f"{config.source}, column {', '.join(columns)}"
    for index in range(len(dataset)):
        name = f"{prefix}{index:06d}"
        given: Given | None
        if rows is None:
            picture = SamplePicture(dataset, index, columns[0])
            given = Given("", Mask(picture) if target.name == "mask" else DepthMap(picture, config.depth_scale))
        else:
            given = _given(next(rows), names, target, where)
        if given is None:
            listing.problems.add("unlabelled", name)
            continue
        here = ClipSample(dataset, index, image) if videos else SamplePicture(dataset, index, image)
        listing.add(split, Item(name, given.text, here, given.value))


def _add_objects(library: Any, listing: Listing, dataset: Any, split: Any, config: DataConfig) -> None:
    image = _column(dataset, config.image_column, library.Image, "image_column")
    column, parts = _object_column(dataset, config)
    if isinstance(dataset.features[image], library.Image):
        dataset = dataset.cast_column(image, library.Image(decode=False))
    names = _class_names(library, _parts(dataset.features[column])[parts["category"]])
    if names is not None or config.label_names:
        listing.labels = names = list(config.label_names) or names
    sizes = [dataset[name] for name in ("height", "width") if name in dataset.features]
    prefix = f"{split}/" if split else ""
    unknown: Counter[str] = Counter()
    for index, row in enumerate(dataset[column]):
        name = f"{prefix}{index:06d}"
        found = row if isinstance(row, list) else _transposed(row or {})
        size = (int(sizes[0][index]), int(sizes[1][index])) if len(sizes) == 2 else None
        boxes, labels, crowd, areas, faults = [], [], [], [], []
        shapes: list[Shape | None] = []
        for one in found:
            label = one.get(parts["category"])
            if isinstance(label, int) and names is not None:
                if not 0 <= label < len(names):
                    unknown[f"category {label}"] += 1
                    continue
                label = names[label]
            try:
                shapes.append(shape_of(one.get(parts["shape"])))
            except ValueError as error:
                faults.append(str(error))
                shapes.append(None)
            boxes.append(corners_of(one.get(parts["box"]), config.box_format or "sides"))
            labels.append(str(label))
            crowd.append(bool(one.get(parts["crowd"]) or False))
            areas.append(float(one.get("area") or 0))
        if faults:
            listing.problems.add("shape", name, f"{faults[0]}{f' and {len(faults) - 1} more' if faults[1:] else ''}")
        objects = Objects.of(boxes, labels, crowd=crowd, shapes=shapes, size=size, areas=areas)
        listing.add(split, Item(name, "", SamplePicture(dataset, index, image), objects))
    note_counts(listing.problems, "unknown_category", unknown, "objects")


def _parts(feature: Any) -> Mapping[str, Any]:
    """The parts of a column of objects, a mapping of lists or a list of mappings; empty for another column."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else feature)
    return inner if isinstance(inner, Mapping) else {}


def _object_column(dataset: Any, config: DataConfig) -> tuple[str, dict[str, str]]:
    """The column of the objects, and the names of its parts."""
    for column, feature in dataset.features.items():
        if config.label_column not in (None, column):
            continue
        told = _parts(feature)
        box = next((name for name in _BOXES if name in told), None)
        category = next((name for name in _CATEGORIES if name in told), None)
        if box is not None and category is not None:
            shape = next((name for name in _SHAPES if name in told), "")
            crowd = next((name for name in _CROWDS if name in told), "")
            return str(column), {"box": box, "category": category, "shape": shape, "crowd": crowd}
    kinds = [column for column, feature in dataset.features.items() if hasattr(feature, "names")]
    if kinds and config.label_column is None:
        raise target_of(config).refused(f"{config.source}, column {kinds[0]!r}", "label")
    raise DataError(
        f"No column of {config.source} holds objects, which are bbox and category: {', '.join(dataset.features)}. State"
        " it with label_column."
    )


def _transposed(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A mapping of lists as a list of mappings; parts that are missing for all stay away."""
    told = {name: values for name, values in row.items() if values is not None}
    count = max((len(values) for values in told.values()), default=0)
    return [{name: values[place] for name, values in told.items() if place < len(values)} for place in range(count)]


def _given(values: tuple[Any, ...], names: list[str] | None, target: Target, where: str) -> Given | None:
    """The target in the columns of one row; None where it is kept back (-1 is the library's mark for a label)."""
    value = values[0]
    if any(one is None for one in values):
        return None
    listed = isinstance(value, list | tuple)
    if target.name == "label":
        if listed:
            raise target.refused(where, "values" if value and isinstance(value[0], float) else "labels")
        if isinstance(value, float) and not value.is_integer():
            raise target.refused(where, "values")
        return None if value == -1 else Given(names[value] if names is not None else str(value))
    if target.name == "labels":
        if not listed:
            raise target.refused(where, "values" if isinstance(value, float) else "label")
        if any(isinstance(one, float) for one in value):
            raise target.refused(where, "values")
        return labels_given([names[one] if names is not None else str(one) for one in value])
    flat = list(value) if listed else list(values)
    if not all(isinstance(one, int | float) for one in flat):
        raise target.refused(where, "labels" if listed else "label")
    return values_given([float(one) for one in flat])


def _class_names(library: Any, feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of a sequence of them."""
    inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) else feature)
    return list(inner.names) if isinstance(inner, library.ClassLabel) else None


def _columns(library: Any, dataset: Any, config: DataConfig, target: Target) -> tuple[str, list[str]]:
    """The column of the image, and those of the target."""
    features = dataset.features
    pictures = [column for column in features if isinstance(features[column], library.Image)]
    if target.on_pixels:
        mask = config.label_column
        if mask is None:
            usual: tuple[str, ...] = _DEPTH_COLUMNS if target.name == "depth" else _MASK_COLUMNS
            mask = next((name for name in usual if name in pictures), None)
            others = [column for column in pictures if column not in (config.image_column, "image")]
            mask = mask or (others[0] if len(others) == 1 and len(pictures) == 2 else None)
        if mask is None:
            labels = [column for column in features if isinstance(features[column], library.ClassLabel)]
            if labels:
                raise target.refused(f"{config.source}, column {labels[0]!r}", "label")
            raise DataError(f"No column can be the {target.name}: {', '.join(features)}. State it with label_column.")
        rest = [column for column in pictures if column != mask]
        image = config.image_column or (rest[0] if len(rest) == 1 else None)
        return image or _column(dataset, None, library.Image, "image_column"), [mask]
    image = _column(dataset, config.image_column, (library.Image, library.Video), "image_column")
    if config.label_columns:
        return image, [_column(dataset, name, library.ClassLabel, "label_columns") for name in config.label_columns]
    if target.name == "label":
        return image, [_column(dataset, config.label_column, library.ClassLabel, "label_column")]
    if config.label_column is None:
        usual = ("labels", "label", "tags") if target.name == "labels" else ("value", "target", "label", "values", "y")
        found = next((name for name in usual if name in features and name != image), None)
        others = [column for column in features if column != image]
        chosen = found or (others[0] if len(others) == 1 else None)
        if chosen is None:
            raise DataError(f"Several columns can be the {target.name}: {', '.join(others)}. State label_column.")
        return image, [chosen]
    return image, [_column(dataset, config.label_column, library.ClassLabel, "label_column")]


def _column(dataset: Any, stated: str | None, kind: Any, option: str) -> str:
    """The column that is stated, or the only one of this kind, or the only one of the kind's usual name."""
    columns = list(dataset.features)
    if stated is not None:
        if stated not in columns:
            raise DataError(f"There is no column {stated!r}. {nearest(stated, columns)}")
        return stated
    fitting = [column for column in columns if isinstance(dataset.features[column], kind)]
    if not fitting:
        fitting = [column for column in columns if column == option.removesuffix("_column")]
    if len(fitting) != 1:
        what = "Several columns" if fitting else "No column"
        shown = ", ".join(fitting or columns)
        raise DataError(f"{what} can be the {option}: {shown}. State it with {option}.")
    return str(fitting[0])
