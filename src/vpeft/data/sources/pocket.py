"""The offline suite: tasks drawn by code or made from pictures inside Python packages, as 'pocket/NAME'."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import source
from vpeft.errors import nearest

_PREFIX = "pocket/"


def _tasks() -> Mapping[str, Any]:
    # Late: the suite is only needed when one of its tasks is asked for.
    tasks: Mapping[str, Any] = importlib.import_module("vpeft.data.pocket").pocket_tasks()
    return tasks


@source
class Pocket:
    """Tasks of the offline suite, each with its own splits."""

    name = "pocket"
    title = "a task of the offline suite, 'pocket/NAME'"

    def claims(self, config: DataConfig) -> bool:
        return config.source.startswith(_PREFIX)

    def names(self) -> Iterable[str]:
        return [_PREFIX + name for name in _tasks()]

    def read(self, config: DataConfig) -> Listing:
        name = config.source.removeprefix(_PREFIX)
        tasks = _tasks()
        if name not in tasks:
            raise DataError(f"The offline suite has no task {name!r}. {nearest(name, tasks)}")
        task = tasks[name]
        labels = [str(label) for label in task.labels]
        listing = Listing(f"Expected: {self.title}.", labels=labels)
        splits = task.splits()
        for split in SPLITS:
            if split not in splits:
                continue
            images, targets = splits[split]
            for index, target in enumerate(targets):
                item = Item(f"{split}/{index:05d}", labels[int(target)], ArrayPicture(images, index))
                listing.add(split, item)
        return listing
