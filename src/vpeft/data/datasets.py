"""Open a data set: list its images, check them, split them."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpeft.arguments import one_of, require
from vpeft.data.checks import compare_splits, look_at_all, most_fit, too_many
from vpeft.data.class_splits import split_by_classes
from vpeft.data.clips.clip import ClipFile, ClipFrames, ClipPicture
from vpeft.data.clips.clip_config import ClipConfig
from vpeft.data.config import DataConfig, TargetName
from vpeft.data.image_set import DecodedImages, ImageSet
from vpeft.data.items import SPLITS, Item, Listing, SplitName
from vpeft.data.manifest import DataManifest, split_manifest
from vpeft.data.pixels import PERCENTILES, Reading, ValueRange
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError, Kind, Problem, Problems
from vpeft.data.several import read_listing
from vpeft.data.sources.registry import Source, find_source
from vpeft.data.splits import at_most, hold_out
from vpeft.data.target import JOIN, Target, target_of
from vpeft.data.used_images import UsedImages
from vpeft.errors import nearest
from vpeft.safe_text import write_list

if TYPE_CHECKING:
    from vpeft.task import Task


@dataclass(frozen=True)
class Datasets:
    """The splits of one data set, with the same `labels`. The test split is for the final evaluation only.

    `labels` are those of all splits; if the splits have different labels, `labels_present` of a split lists its own.
    `config.window` holds the numbers that "auto" found. `used` marks the images of train and val, for adapter files.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    labels: list[str]
    manifest: DataManifest
    config: DataConfig
    used: UsedImages | None = None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems that were found, in order."""
        return tuple(self.manifest.problems)

    @property
    def splits(self) -> dict[SplitName, ImageSet]:
        """The existing splits by name."""
        named: dict[SplitName, ImageSet | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def prepared(self, preprocessing: Preprocessing, task: Task | None = None) -> Datasets:
        """Return the same data with the preprocessing of a backbone; only train gets the configured augmentation.

        A task may state transforms of its own (`Task.transforms`); without one, images are resized to one size.

        Masks go through the same steps. Images have the channels of the configuration, or else of `preprocessing`;
        `preprocessing_of` returns the preprocessing that is applied.
        """
        chosen = self.preprocessing_of(preprocessing)
        policy = self.config.augmentation
        augmented = (self.train.target if task is None else task).transforms(chosen, policy, True)
        return replace(
            self,
            train=self.train.prepared(chosen).with_transform(augmented),
            val=self.val.prepared(chosen, task) if self.val is not None else None,
            test=self.test.prepared(chosen, task) if self.test is not None else None,
        )

    def preprocessing_of(self, preprocessing: Preprocessing) -> Preprocessing:
        """Return the applied preprocessing: `preprocessing` with the size, channels and window of the data.

        Save it in the adapter file, so that `Preprocessing.read` and `transform` treat new images the same.
        """
        return preprocessing.for_data(self.config)

    def table(self) -> str:
        """Return all images as CSV text `path,label,split`, which `open_data` reads as a list (with `root`).

        Labels are one cell with ; between them, values one column each; masks are in the column `mask`. A cell that
        a spreadsheet would run as a formula has an apostrophe in front, which `open_data` takes away again. Raises
        `DataError` for objects, which a list cannot hold.
        """
        kind = self.train.target
        text = io.StringIO()
        columns = ["path", *kind.list_columns(self.labels), "split"]
        rows = [
            row
            for name, split in self.splits.items()
            for row in sorted((i.name, *kind.cells(i), name) for i in split.items)
        ]
        write_list(text, columns, rows)
        return text.getvalue()


def open_data(config: DataConfig, *, fewest_classes: int = 2) -> Datasets:
    """Open the data set of `config`, checked and split; images are uint8 until `prepared`.

    Args:
        config: where it is and how it is read.
        fewest_classes: 1 where a single class is enough, as for a model that knows others.

    Raises:
        DataError: a problem that makes the data unusable, or any problem if `strict`. Others are `DataWarning`s.
    """
    require("open_data(config)", config=(config, one_of(DataConfig, says="a DataConfig")))
    source = find_source(config)
    target = _target(source, config)
    listing = read_listing(source, config)
    problems = listing.problems
    cache = _memory(config)
    looked = _look(listing, config, cache)
    content, config = looked.content, looked.config
    everything = [*listing.whole, *(item for items in listing.splits.values() for item in items)]
    groups = {name: key for name, key in content.items() if key}
    groups |= {item.name: whole for item in everything if (whole := _cut_from(item)) is not None}
    strata = target.strata(everything) if target.name != "label" else None

    splits, made = _split(listing, config, groups, problems, strata)
    labels = target.labels(everything, listing.labels)
    _require_known(config, labels)
    compare_splits(splits, content, problems)
    if config.train_on_val and "val" in splits:
        splits["train"] = [*splits["train"], *splits.pop("val")]
    if config.per_class is not None:
        if target.on_pixels or target.name == "values":
            raise DataError(f"per_class counts images of each class, and {target.task} has none; leave it out.")
        splits["train"] = at_most(splits["train"], config.per_class, config.seed, strata)
    # splits by classes have other classes each, and are not compared
    compared = {"train": everything} if config.split_by == "classes" else splits
    if len(labels) != 1 or fewest_classes > 1:
        target.compare(compared, labels, [*(listing.labels or ()), *listing.stated], problems)
    problems.report(config.source, strict=config.strict)

    reading = _reading(config)
    sets = {
        name: ImageSet(items, labels, seed=config.seed, cache=cache, target=target, reading=reading)
        for name, items in splits.items()
    }
    manifest = DataManifest(
        source=config.source,
        layout=source.name,
        labels=labels,
        splits={
            name: split_manifest(
                items,
                content,
                made=name in made,
                target=target,
                labels=labels,
                masks={item.name: looked.masks[item.name] for item in items} if target.on_pixels else None,
            )
            for name, items in splits.items()
        },
        split_seed=config.seed if made else None,
        problems=problems.found,
        target=target.name,
    )
    used = UsedImages.of(splits, content, by_classes=config.split_by == "classes")
    return Datasets(sets["train"], sets.get("val"), sets.get("test"), labels, manifest, config, used)


def open_for_evaluation(
    config: DataConfig,
    labels: Sequence[str] | None,
    used: UsedImages | None = None,
    split: SplitName | None = None,
) -> ImageSet:
    """Open images to evaluate a model with `labels` (any labels if None).

    Without a named split it returns the test split if the source states one, else its val split, else all images;
    without those that are `used`, which a `DataWarning` says. The named split `train` or `val` is that of the training
    whose images are `used`, if the source holds them, else the one that the source states.

    Args:
        config: where the images are and how they are read.
        labels: what the model knows.
        used: the images of its training.
        split: which split is wanted.

    Raises:
        DataError: the model does not know a label, there is no such split, or as `open_data`.
    """
    source = find_source(config)
    target = _target(source, config)
    if target.name == "mask" and not config.label_names and labels:
        config = config.model_copy(update={"label_names": tuple(labels)})
    listing = read_listing(source, config)
    stated = {name: items for name in SPLITS if (items := listing.splits.get(name))}
    marks = None if used is None or split is None else used.of_split(split)
    if marks is not None and marks.every == 1:
        # what a training calls validation may be drawn from the source's training images
        drawn = [item for name in ("train", "val") for item in listing.splits.get(name, ())]
        listing.whole, listing.splits = [*listing.whole, *drawn], {}
    else:
        marks = None
        if split is not None and split not in stated and (stated or split != "test"):
            raise _no_split(config, split, stated)
        if stated:
            last = next(name for name in reversed(SPLITS) if name in stated)
            listing.whole, listing.splits = stated[last if split is None else split], {}
    cache = _memory(config)
    looked = _look(listing, config, cache)
    config = looked.config
    listing.problems.report(config.source, strict=config.strict)
    if marks is not None and split is not None:
        found = [item for item in listing.whole if marks.has(looked.content.get(item.name, ""))]
        names = {item.name for item in stated.get(split, ())}
        listing.whole = found or [item for item in listing.whole if item.name in names]
        if not listing.whole:
            raise _no_split(config, split, stated)
    elif used is not None and split in (None, "test"):
        listing.whole = used.held_out(listing.whole, looked.content, stated=bool(stated))
    if labels is None:
        labels = target.labels(listing.whole, listing.labels)
    return ImageSet(listing.whole, labels, seed=config.seed, cache=cache, target=target, reading=_reading(config))


def _require_known(config: DataConfig, labels: Sequence[str]) -> None:
    """Refuse classes of `clip.no_flip` that the data lack: their clips would be mirrored."""
    strange = [one for one in (config.clip.no_flip if config.clip else ()) if one not in labels]
    if strange:
        raise DataError(
            f"clip.no_flip names {', '.join(map(repr, strange))}, which is no class of {config.source}."
            f" {nearest(strange[0], labels)}"
        )


def _no_split(config: DataConfig, split: SplitName, stated: Collection[SplitName]) -> DataError:
    has = f"states {' and '.join(stated)}" if stated else "states no splits"
    return DataError(
        f"{config.source} has no split {split}: it {has}, and none of its images is known as one of {split} of the"
        " adapter's training. Name another split, or the data that the adapter was trained with."
    )


def _target(source: Source, config: DataConfig) -> Target:
    """Return the kind of target of the configuration; raises `DataError` if the source does not have it."""
    target = target_of(config)
    had: tuple[TargetName, ...] = getattr(source, "targets", ("label",))
    for kind in target.name.split(JOIN):
        if kind not in had:
            raise target_of(kind).refused(f"{config.source} (layout {source.name})", had[0])
    return target


def _reading(config: DataConfig) -> Reading:
    return Reading(config.channels or 3, config.window, config.max_pixels, config.max_aspect, config.max_mib)


@dataclass(frozen=True)
class _Looked:
    """The sha256 of each image and mask by the image's name, and the configuration with the window found."""

    content: dict[str, str]
    masks: dict[str, str]
    config: DataConfig


def _memory(config: DataConfig) -> DecodedImages | None:
    return DecodedImages(int(config.cache_gib * 2**30)) if config.cache == "ram" else None


def _look(listing: Listing, config: DataConfig, cache: DecodedImages | None) -> _Looked:
    """Check all images, drop the broken ones, fill `cache`, and find the window if it is "auto"."""
    everything = [*listing.whole, *(item for split in SPLITS for item in listing.splits.get(split, ()))]
    if not everything:
        listing.problems.report(config.source, strict=config.strict)
        raise DataError(f"{config.source} holds no image. {listing.expected}")
    if config.window == "auto" and config.check != "decode":
        raise DataError("window = 'auto' reads the values of all images, which needs check = 'decode'.")
    keep = cache is not None and config.window != "auto"
    content: dict[str, str] = {}
    masks: dict[str, str] = {}
    broken: set[str] = set()
    changed: dict[str, Item] = {}
    boxes: list[tuple[int, int, int]] = []
    values, wide = listing.values, len(everything) if listing.values is not None else 0
    # Looked at as plain numbers where the window is found out here, since these may have no range of their own.
    reading = _reading(config)
    if config.window == "auto":
        reading = replace(reading, window="percentiles")
    classes = len(listing.labels) if listing.labels else None
    for seen in look_at_all(everything, config.check, keep=keep, reading=reading, classes=classes):
        name = seen.item.name
        if seen.values is not None:
            values = seen.values.joined(values)
            wide += 1
        if seen.missing:
            listing.problems.add("missing", name)
        elif seen.unreadable:
            kind: Kind = "unreadable_clip" if isinstance(seen.item.picture, ClipPicture) else "unreadable"
            listing.problems.add(kind, name, _without_path(seen.unreadable, seen.item))
        elif seen.on_pixels is not None and seen.on_pixels.fault is not None:
            listing.problems.add(seen.on_pixels.fault[0], name, seen.on_pixels.fault[1])
        else:
            content[name] = seen.content
            changed[name] = seen.item
            if seen.on_pixels is not None:
                masks[name] = seen.on_pixels.content
                boxes.append(seen.on_pixels.boxes)
                for note in seen.on_pixels.notes:
                    listing.problems.add(note.kind, name, note.detail)
            for said in seen.notes:
                listing.problems.add(said.kind, name, said.detail)
            if keep and cache is not None and seen.image is not None:
                cache.keep(name, seen.image)
            continue
        broken.add(name)
    too_many(listing.problems, len(everything), config.max_unreadable, config.source)
    most_fit(boxes, config.source)
    if broken or changed:
        listing.whole = [changed.get(item.name, item) for item in listing.whole if item.name not in broken]
        listing.splits = {
            name: [changed.get(item.name, item) for item in items if item.name not in broken]
            for name, items in listing.splits.items()
        }
    if len(broken) == len(everything):
        raise DataError(
            f"{config.source} holds no image with a {config.target} that fits:\n"
            + "\n".join(f"  {listing.problems.sentence(kind)}." for kind in _kinds(listing.problems))
        )
    config = _windowed(values, wide, config, listing.problems)
    if config.clip is None and any(isinstance(item.picture, ClipPicture) for item in everything):
        config = config.model_copy(update={"clip": ClipConfig()})  # the data are clips, and it is not said how
    return _Looked(content, masks, config)


def _kinds(problems: Problems) -> list[Kind]:
    return list(dict.fromkeys(problem.kind for problem in problems.found))


def _cut_from(item: Item) -> str | None:
    """The video or folder of which an item is a part; all parts of one stay on one side of a split."""
    clip: Any = item.picture
    return str(clip.file) if isinstance(clip, ClipFile | ClipFrames) and clip.part is not None else None


def _windowed(values: ValueRange | None, wide: int, config: DataConfig, problems: Problems) -> DataConfig:
    """Return the configuration with the window found, and a note if images would be dark."""
    if values is None:
        return config if config.window != "auto" else config.model_copy(update={"window": "type"})
    low, high = values.fitting
    if config.window == "auto":
        return config.model_copy(update={"window": (low, high)})
    if config.window == "type" and values.dark:
        problems.add(
            "dark",
            f"{wide} with values from {values.low:g} to {values.high:g} of {values.top:g}",
            f"make them visible with window = ({low:g}, {high:g}), or with window = 'percentiles', which takes the "
            f"{PERCENTILES[0]:g}st and {PERCENTILES[1]:g}th of each image",
        )
    return config


def _without_path(text: str, item: Item) -> str:
    file: Path | None = item.picture.file
    return text.removeprefix(f"{file}: ") if file is not None else text


def _split(
    listing: Listing,
    config: DataConfig,
    groups: dict[str, str],
    problems: Problems,
    strata: dict[str, str] | None,
) -> tuple[dict[SplitName, list[Item]], set[SplitName]]:
    """Return the stated splits, make missing ones, and return the names of those that were made or reduced by it."""
    if config.split_by == "classes":
        return split_by_classes(listing, config, strata)
    splits = {name: listing.splits[name] for name in SPLITS if listing.splits.get(name)}
    made: set[SplitName] = set()
    rest_fraction = 1.0
    if not splits:
        rest, test = hold_out(listing.whole, config.test_fraction, config.seed, groups, strata)
        rest_fraction = 1 - config.test_fraction
        splits = {"train": rest, "test": test}
        made |= {"train", "test"}
    if "train" not in splits:
        raise DataError(
            f"{config.source} states {' and '.join(splits)} but no images to train on. "
            "Add a train split, or evaluate a trained adapter on it instead."
        )
    if "val" not in splits:
        fraction = config.val_fraction / rest_fraction
        splits["train"], splits["val"] = hold_out(splits["train"], fraction, config.seed, groups, strata)
        made |= {"train", "val"}
    held_out: tuple[tuple[SplitName, float], ...] = (("val", config.val_fraction), ("test", config.test_fraction))
    for name, wanted in held_out:
        if name in splits and not splits[name]:
            del splits[name]
            made.discard(name)
            if wanted:
                problems.add("split", name, "too few images for this split; it stays empty")
    return {name: splits[name] for name in SPLITS if name in splits}, made
