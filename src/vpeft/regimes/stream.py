"""A stream of tasks out of labelled images: classes that come a few at a time, or domains of the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vpeft.data.datasets import Datasets
from vpeft.data.image_set import ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.used_images import UsedImages
from vpeft.errors import VpeftError, nearest

# PILOT's order of classes is that of this seed (github.com/sun-hailong/LAMDA-PILOT).
ORDER_SEED = 1993
Judge = Literal["test", "val"]


class BadStream(VpeftError):
    """Tasks that overlap, lack images, or do not fit the classes."""


@dataclass(frozen=True)
class StreamTask:
    """One task of a stream.

    Attributes:
        number: from 0.
        name: for tables: its classes, or its domain.
        first, end: its classes count from `first` to `end` - 1 in the order of the stream.
        seen: classes of this task and all before.
        train: its training images, augmented as configured.
        plain: the same images as in evaluation, for class means and other statistics.
        judged: images that nothing is learnt from: the test split, or the validation split.
    """

    number: int
    name: str
    first: int
    end: int
    seen: int
    train: ImageSet
    plain: ImageSet
    judged: ImageSet

    @property
    def classes(self) -> int:
        """How many classes it has."""
        return self.end - self.first


@dataclass(frozen=True)
class Stream:
    """Tasks in order.

    Attributes:
        kind: "class": disjoint classes arrive task by task; "domain": the same classes in another domain.
        labels: all class names in the order in which they come; the targets of every image count in it.
        tasks: in order.
        judge: the split by which it is judged.
        facts: how it was made, JSON, for records.
        used: marks of the images that may be learnt from, for adapter files.
    """

    kind: Literal["class", "domain"]
    labels: tuple[str, ...]
    tasks: tuple[StreamTask, ...]
    judge: Judge
    facts: dict[str, Any]
    used: UsedImages | None = None

    def labels_at(self, number: int) -> tuple[str, ...]:
        """The classes seen after task `number`."""
        return self.labels[: self.tasks[number].seen]


def class_order(labels: Sequence[str], seed: int | None) -> tuple[str, ...]:
    """The order of classes of a seed; None keeps that of the data.

    It is numpy's legacy permutation, by which published orders are stated (`np.random.seed(1993)`).
    """
    if seed is None:
        return tuple(labels)
    return tuple(labels[index] for index in np.random.RandomState(seed % 2**32).permutation(len(labels)))


def class_groups(
    labels: Sequence[str], increment: int, first: int = 0, seed: int | None = ORDER_SEED
) -> list[tuple[str, ...]]:
    """The classes of each task for "B-`first` Inc-`increment`": `first` in the first task (0: as many as in the
    others), `increment` in each later one; the last has what is left.

    Raises:
        BadStream: the sizes do not fit the classes.
    """
    if increment < 1 or first < 0:
        raise BadStream(f"A task needs at least one class: increment is {increment}, first is {first}.")
    start = first or increment
    if start >= len(labels):
        raise BadStream(
            f"There are {len(labels)} classes, and the first task would have {start} of them: nothing is left to learn"
            f" over time. Choose an increment below {len(labels)}."
        )
    order = class_order(labels, seed)
    ends = [start, *range(start + increment, len(order), increment), len(order)]
    return [order[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if begin < end]


def class_stream(
    data: Datasets,
    preprocessing: Preprocessing,
    *,
    increment: int = 0,
    first: int = 0,
    order_seed: int | None = ORDER_SEED,
    groups: Sequence[Sequence[str]] | None = None,
    judge: Judge = "test",
) -> Stream:
    """The stream of a labelled data set in which classes arrive task by task.

    Args:
        data: as `open_data` gives it.
        preprocessing: of the backbone.
        increment, first, order_seed: see `class_groups`.
        groups: the classes of each task, in place of these three.
        judge: the split that accuracies are measured on; "val" to choose settings without the test split.

    Raises:
        BadStream: classes in two tasks, unknown ones, tasks or classes without enough images, or no such split.
    """
    names = _labels(data)
    made = class_groups(names, increment, first, order_seed) if groups is None else [tuple(group) for group in groups]
    _require_apart(made, names)
    if len(made[0]) < 2:
        raise BadStream(f"The first task has the class {made[0][0]!r} alone; a classifier begins with two or more.")
    order = tuple(name for group in made for name in group)
    train, plain, judged = _splits(data, preprocessing, judge)
    tasks, begin = list[StreamTask](), 0
    for number, group in enumerate(made):
        end = begin + len(group)
        label = ", ".join(group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
        tasks.append(_task(number, label, group, order, (begin, end, end), train, plain, judged))
        begin = end
    facts = {
        "kind": "class",
        "notation": _notation(made),
        "order_seed": order_seed if groups is None else None,
        "classes": [list(group) for group in made],
        "judge": judge,
        "source": data.config.source,
        "data": data.manifest.digest,
    }
    return Stream("class", order, tuple(tasks), judge, facts, data.used)


def domain_stream(data: Sequence[Datasets], preprocessing: Preprocessing, *, judge: Judge = "test") -> Stream:
    """The stream of data sets of the same classes, each a domain, in the order given.

    Raises:
        BadStream: fewer than two, other classes in one of them, or as `class_stream`.
    """
    if len(data) < 2:
        raise BadStream("A stream of domains needs two data sets or more.")
    order = tuple(_labels(data[0]))
    tasks = []
    for number, one in enumerate(data):
        if set(one.labels) != set(order):
            odd = sorted(set(one.labels) ^ set(order))
            raise BadStream(
                f"The domains need the same classes; {one.config.source} differs from {data[0].config.source} in"
                f" {', '.join(odd[:5])}."
            )
        splits = _splits(one, preprocessing, judge)
        tasks.append(_task(number, one.config.source, order, order, (0, len(order), len(order)), *splits))
    facts = {
        "kind": "domain",
        "classes": [list(order)],
        "judge": judge,
        "source": [one.config.source for one in data],
        "data": [one.manifest.digest for one in data],
    }
    return Stream("domain", order, tuple(tasks), judge, facts)


def _labels(data: Datasets) -> list[str]:
    if data.train.target.name != "label":
        raise BadStream(
            f"A stream needs images with one label each; {data.config.source} has {data.train.target.name}."
        )
    return list(data.labels)


def _require_apart(groups: Sequence[tuple[str, ...]], names: Sequence[str]) -> None:
    if len(groups) < 2 or not all(groups):
        raise BadStream("A stream needs two tasks or more, each with a class.")
    home: dict[str, int] = {}
    for number, group in enumerate(groups):
        for name in group:
            if name not in names:
                raise BadStream(f"Task {number} names the class {name!r}, which the data lack. {nearest(name, names)}")
            if name in home:
                raise BadStream(
                    f"The class {name!r} is in task {home[name]} and in task {number}; tasks must have different"
                    " classes. For the same classes in other domains use `domain_stream`."
                )
            home[name] = number


def _splits(data: Datasets, preprocessing: Preprocessing, judge: Judge) -> tuple[ImageSet, ImageSet, ImageSet]:
    """The training images as in training and as in evaluation, and those it is judged by."""
    ready = data.prepared(preprocessing)
    judged = ready.test if judge == "test" else ready.val
    if judged is None:
        raise BadStream(f"{data.config.source} has no {judge} split to judge by; set data.{judge}_fraction above 0.")
    return ready.train, data.train.prepared(preprocessing), judged


def _task(
    number: int,
    name: str,
    group: Sequence[str],
    order: tuple[str, ...],
    counts: tuple[int, int, int],
    train: ImageSet,
    plain: ImageSet,
    judged: ImageSet,
) -> StreamTask:
    first, end, seen = counts
    chosen = _of_classes(train, group)
    there = _of_classes(judged, group)
    if len(chosen) < 2:
        raise BadStream(
            f"Task {number} ({name}) has {len(chosen)} training image{'s' * (len(chosen) != 1)}; a task needs two or"
            " more. Add images, or choose a larger increment."
        )
    learnt = train.subset(chosen).relabelled(order[:seen])
    missing = [one for one, count in learnt.counts().items() if not count and one in group]
    if missing:
        raise BadStream(f"Task {number}: there is no training image of {', '.join(missing[:5])}.")
    if not there:
        raise BadStream(f"Task {number} ({name}) has no image in the split that it is judged by. Add some.")
    return StreamTask(
        number,
        name,
        first,
        end,
        seen,
        learnt,
        plain.subset(chosen).relabelled(order[:seen]),
        judged.subset(there).relabelled(order),
    )


def _of_classes(images: ImageSet, group: Sequence[str]) -> list[int]:
    wanted = set(group)
    return [index for index, target in enumerate(images.targets) if images.labels[target] in wanted]


def _notation(groups: Sequence[Sequence[str]]) -> str:
    first, later = len(groups[0]), len(groups[1])
    return f"B-{0 if first == later else first} Inc-{later}"


def joined(tasks: Sequence[StreamTask]) -> ImageSet:
    """The training images of several tasks together, with the labels and the transform of the last."""
    last = tasks[-1].train
    items = [item for task in tasks for item in task.train.items]
    return ImageSet(
        items,
        last.labels,
        transform=last.transform,
        seed=last.seed,
        cache=last.cache,
        target=last.target,
        reading=last.reading,
    )
