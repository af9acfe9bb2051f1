"""Opening a data set: list it, look at it, split it, say what is wrong, hand out its splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vpeft.data.checks import compare_classes, compare_splits, look_at_all, too_many
from vpeft.data.config import DataConfig
from vpeft.data.image_set import DecodedImages, ImageSet
from vpeft.data.items import SPLITS, Item, Listing, SplitName, in_order
from vpeft.data.manifest import DataManifest, split_manifest
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError, Problem, Problems
from vpeft.data.sources.registry import find_source
from vpeft.data.splits import at_most, hold_out


@dataclass(frozen=True)
class Datasets:
    """The splits of one data set, over the same `labels`. Test is for the final evaluation only."""

    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    labels: list[str]
    manifest: DataManifest
    config: DataConfig

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found to be wrong, in the order of finding."""
        return tuple(self.manifest.problems)

    @property
    def splits(self) -> dict[SplitName, ImageSet]:
        """The splits that exist, by name."""
        named: dict[SplitName, ImageSet | None] = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def prepared(self, preprocessing: Preprocessing) -> Datasets:
        """The same images as the backbone wants them; only train passes through the configured augmentation."""
        chosen = preprocessing.resized(self.config.image_size) if self.config.image_size else preprocessing
        plain = chosen.transform()
        return replace(
            self,
            train=self.train.with_transform(chosen.augmented(self.config.augmentation)),
            val=self.val.with_transform(plain) if self.val is not None else None,
            test=self.test.with_transform(plain) if self.test is not None else None,
        )

    def table(self) -> str:
        """All images as a csv text `path,label,split`, which `open_data` reads as a list (with `root`)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        for name, split in self.splits.items():
            writer.writerows(sorted((item.name, item.label, name) for item in split.items))
        return text.getvalue()


def open_data(config: DataConfig) -> Datasets:
    """The data set that `config` names, checked and split; images come as uint8 until `prepared`.

    Problems are shown as `DataWarning`. Raises `DataError` for those that cannot be lived with, or any if `strict`.
    """
    source = find_source(config)
    listing = source.read(config)
    problems = listing.problems
    cache = _memory(config)
    content = _look(listing, config, cache)
    groups = {name: key for name, key in content.items() if key}

    splits, made = _split(listing, config, groups, problems)
    labels = _labels(listing)
    compare_splits(splits, content, problems)
    if config.train_on_val and "val" in splits:
        splits["train"] = [*splits["train"], *splits.pop("val")]
    if config.per_class is not None:
        splits["train"] = at_most(splits["train"], config.per_class, config.seed)
    compare_classes(splits, labels, [*(listing.labels or ()), *listing.stated], problems)
    problems.report(config.source, strict=config.strict)

    sets = {name: ImageSet(items, labels, seed=config.seed, cache=cache) for name, items in splits.items()}
    manifest = DataManifest(
        source=config.source,
        layout=source.name,
        labels=labels,
        splits={name: split_manifest(items, content, made=name in made) for name, items in splits.items()},
        split_seed=config.seed if made else None,
        problems=problems.found,
    )
    return Datasets(sets["train"], sets.get("val"), sets.get("test"), labels, manifest, config)


def open_for_evaluation(config: DataConfig, labels: Sequence[str]) -> ImageSet:
    """Labelled images to score a model that knows `labels`: the test split where the source states one, else its val
    split, else all of it. Raises `DataError` for a label that the model does not know.
    """
    listing = find_source(config).read(config)
    if any(listing.splits.values()):
        chosen = next(name for name in reversed(SPLITS) if listing.splits.get(name))
        listing.whole, listing.splits = listing.splits[chosen], {}
    cache = _memory(config)
    _look(listing, config, cache)
    listing.problems.report(config.source, strict=config.strict)
    return ImageSet(listing.whole, labels, seed=config.seed, cache=cache)


def _memory(config: DataConfig) -> DecodedImages | None:
    return DecodedImages(int(config.cache_gib * 2**30)) if config.cache == "ram" else None


def _look(listing: Listing, config: DataConfig, cache: DecodedImages | None) -> dict[str, str]:
    """Look at all images, take out the broken ones, fill `cache`; returns the content digest of each image by name."""
    everything = [*listing.whole, *(item for split in SPLITS for item in listing.splits.get(split, ()))]
    if not everything:
        raise DataError(f"{config.source} holds no image. {listing.expected}")
    content: dict[str, str] = {}
    broken: set[str] = set()
    for seen in look_at_all(everything, config.check, keep=cache is not None):
        name = seen.item.name
        if seen.missing:
            listing.problems.add("missing", name)
        elif seen.unreadable:
            listing.problems.add("unreadable", name, _without_path(seen.unreadable, seen.item))
        else:
            content[name] = seen.content
            if cache is not None and seen.image is not None:
                cache.keep(name, seen.image)
            continue
        broken.add(name)
    too_many(listing.problems, len(everything), config.max_unreadable, config.source)
    if broken:
        listing.whole = [item for item in listing.whole if item.name not in broken]
        listing.splits = {
            name: [item for item in items if item.name not in broken] for name, items in listing.splits.items()
        }
    return content


def _without_path(text: str, item: Item) -> str:
    file: Path | None = item.picture.file
    return text.removeprefix(f"{file}: ") if file is not None else text


def _split(
    listing: Listing, config: DataConfig, groups: dict[str, str], problems: Problems
) -> tuple[dict[SplitName, list[Item]], set[SplitName]]:
    """The splits as stated or, where absent, made; and the names of those that were made or cut by it."""
    splits = {name: listing.splits[name] for name in SPLITS if listing.splits.get(name)}
    made: set[SplitName] = set()
    rest_fraction = 1.0
    if not splits:
        rest, test = hold_out(listing.whole, config.test_fraction, config.seed, groups)
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
        splits["train"], splits["val"] = hold_out(splits["train"], fraction, config.seed, groups)
        made |= {"train", "val"}
    held_out: tuple[tuple[SplitName, float], ...] = (("val", config.val_fraction), ("test", config.test_fraction))
    for name, wanted in held_out:
        if name in splits and not splits[name]:
            del splits[name]
            made.discard(name)
            if wanted:
                problems.add("split", name, "too few images to hold any out; it stays empty")
    return {name: splits[name] for name in SPLITS if name in splits}, made


def _labels(listing: Listing) -> list[str]:
    """The labels that images carry, in the order that the source states, or sorted."""
    used = {item.label for items in (listing.whole, *listing.splits.values()) for item in items}
    if listing.labels is None:
        return in_order(used)
    return [label for label in listing.labels if label in used]
