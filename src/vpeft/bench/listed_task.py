"""A task of a suite made of what a source lists: files are looked at, compared with published numbers, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from vpeft.bench.key import canonical
from vpeft.bench.sealed import SealedTest
from vpeft.bench.splits import SplitItems
from vpeft.bench.suite import BenchTask
from vpeft.data.checks import look_at_all
from vpeft.data.items import SPLITS, Item, SplitName, in_order
from vpeft.data.set_facts import SetFacts
from vpeft.errors import VpeftError

_SHOWN = 5


class IncompleteData(VpeftError):
    """Files of a suite are missing or damaged, or there are more or fewer than is published."""


def listed_task(
    suite: str,
    name: str,
    group: str,
    splits: Mapping[SplitName, Sequence[Item]],
    *,
    labels: Sequence[str] | None = None,
    facts: SetFacts | None = None,
    exact: bool = True,
) -> BenchTask:
    """A task of classification whose images are files, or rows of arrays.

    Args:
        suite, name, group: see `BenchTask`.
        splits: train and test, and val where there are validation images.
        labels: the classes in their order; by default those of the images, numbers by value.
        facts: published numbers.
        exact: whether the numbers of images and classes must be those of `facts`.

    Raises:
        IncompleteData: an image is missing or is none; a split is empty; a number is not the published one.
    """
    where = f"{suite}/{name}"
    empty = [split for split in ("train", "test") if not splits.get(split)]
    if empty:
        raise IncompleteData(f"{where} has no images in {' and '.join(empty)}.")
    known = list(labels or in_order({item.label for items in splits.values() for item in items}))
    if facts is not None and exact:
        _require_published(where, facts, splits, known)
    made: dict[SplitName, SplitItems] = {}
    stated: dict[str, str] = {}
    faults: dict[str, list[str]] = {"missing": [], "damaged": []}
    for split in SPLITS:
        items, lines = [], []
        # The header alone: an image whose pixels are damaged fails the run that meets it.
        for seen in look_at_all(tuple(splits.get(split, ())), "header"):
            if seen.missing or seen.unreadable:
                faults["missing" if seen.missing else "damaged"].append(f"{split}/{seen.item.name}")
                continue
            items.append(seen.item)
            lines.append(f"{seen.item.name}\t{seen.item.label}\t{seen.content}\n")
        stated[split] = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
        order = hashlib.sha256("".join(lines).encode()).hexdigest()
        made[split] = SplitItems(tuple(items), "label", order if items else "")
    found = [f"{len(names)} {kind}: {_first(names)}" for kind, names in faults.items() if names]
    if found:
        raise IncompleteData(f"{where}: images are {'; '.join(found)}. Get the data again, or mend the lists.")
    summary = {"suite": suite, "name": name, "labels": known, "splits": stated}
    test = made["test"]
    return BenchTask(
        suite=suite,
        name=name,
        group=group,
        labels=tuple(known),
        train=made["train"],
        val=made["val"],
        test=SealedTest(where, lambda: test),
        digest=hashlib.sha256(canonical(summary).encode()).hexdigest(),
    )


def _require_published(
    where: str, facts: SetFacts, splits: Mapping[SplitName, Sequence[Item]], labels: Sequence[str]
) -> None:
    wrong = []
    for split in SPLITS:
        found, published = len(splits.get(split, ())), facts.sizes.get(split)
        if published is not None and found != published:
            wrong.append(f"{found} images in {split}, published: {published}")
    if len(labels) != facts.classes:
        wrong.append(f"{len(labels)} classes, published: {facts.classes}")
    unknown = {item.label for items in splits.values() for item in items} - set(labels)
    if unknown:
        wrong.append(f"labels that are no class: {_first(in_order(unknown))}")
    if wrong:
        raise IncompleteData(
            f"{where} is not the published set: {'; '.join(wrong)}. A tier for a first look (--tier smoke) takes any"
            " part of it."
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
