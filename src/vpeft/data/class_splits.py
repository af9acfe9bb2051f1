"""Splits of which no two share a class, as retrieval needs them: what is told apart in the test was never learnt."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from vpeft.data.config import DataConfig
from vpeft.data.image_set import ImageSet
from vpeft.data.items import SPLITS, Item, Listing, SplitName, in_order
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.splits import rank


def split_by_classes(
    listing: Listing, config: DataConfig, strata: Mapping[str, str] | None = None
) -> tuple[dict[SplitName, list[Item]], set[SplitName]]:
    """The splits with classes of their own, and the names of those that were made or reduced by it.

    The test has the last `test_fraction` of the classes in their order, as the published splits of CUB and Cars do;
    validation has `val_fraction` of the others, drawn by `config.seed`. Stated splits that share no class stay as they
    are. Where they share classes, each keeps the images of its own classes and the others are left out, so that images
    which a source holds back for its test are not trained on.

    Args:
        listing: with its own splits, or a whole.
        config: fractions and seed.
        strata: what takes the place of the class, for kinds of target with several or none.

    Raises:
        DataError: the targets are no classes, the source has no images to train on, or there are too few classes.
    """
    if strata is not None:
        raise DataError("split_by = 'classes' needs one label for each image, and these have another kind of target.")
    stated = {name: listing.splits[name] for name in SPLITS if listing.splits.get(name)}
    pools: dict[SplitName, list[Item]] = dict(stated) or dict.fromkeys(SPLITS, listing.whole)
    if "train" not in pools:
        raise DataError(f"{config.source} states {' and '.join(stated)} but no images to train on. Add a train split.")
    learnt, tested = _own(pools["train"]), _own(pools.get("test", []))
    if "test" in stated and not learnt & tested:
        ordered, last = _ordered(listing, learnt), tested
    else:
        ordered = _ordered(listing, learnt | tested)
        count = round(config.test_fraction * len(ordered))
        ordered, last = ordered[: len(ordered) - count], set(ordered[len(ordered) - count :])
    checked = _own(pools["val"]) if "val" in stated else set()
    if not checked or checked & set(ordered):
        drawn = sorted(ordered, key=lambda label: rank(config.seed, label))
        share = round(config.val_fraction * len(ordered))
        # one class alone is always found; two are the fewest that can be mixed up
        checked = set(drawn[: max(share, min(2, len(ordered) - 2)) if config.val_fraction else 0])
    owners: dict[SplitName, set[str]] = {"train": set(ordered) - checked, "val": checked, "test": last}
    if len(owners["train"]) < 2:
        raise DataError(
            f"{config.source} has {len(ordered) + len(last)} classes, of which {len(owners['train'])} would be left to"
            " train on; at least two are needed. Lower test_fraction or val_fraction."
        )
    made: dict[SplitName, list[Item]] = {}
    for name, own in owners.items():
        pool = pools.get(name, pools["train"] if name == "val" else [])
        kept = [item for item in pool if item.label in own]
        if kept:
            made[name] = kept
        elif own:
            listing.problems.add("split", name, "none of its classes has an image in this split; it stays empty")
    return made, {name for name, items in made.items() if len(items) != len(stated.get(name, []))}


def without_classes(images: ImageSet, learnt: Sequence[str], source: str) -> ImageSet:
    """The images of classes that are not `learnt`; a `DataWarning` says how many others were left out.

    Raises:
        DataError: no image is left.
    """
    known = set(learnt)
    kept = [index for index, item in enumerate(images.items) if item.label not in known]
    if len(kept) == len(images):
        return images
    if not kept:
        raise DataError(
            f"All images of {source} are of classes that training had, and this task is scored on others. Score them"
            " all the same with split_by = images (--data.split-by images)."
        )
    warnings.warn(
        f"{source}: {len(images) - len(kept)} images are of classes that training had, and are left out; split_by ="
        " images scores them too.",
        DataWarning,
        stacklevel=2,
    )
    return images.subset(kept)


def _own(items: Sequence[Item]) -> set[str]:
    return {item.label for item in items}


def _ordered(listing: Listing, labels: set[str]) -> list[str]:
    """The labels in the order that the source states, or by value or name."""
    if listing.labels is not None:
        return [label for label in listing.labels if label in labels]
    return in_order(labels)
