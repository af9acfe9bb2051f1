"""The offline suite: tasks drawn by code or made from pictures inside Python packages, as 'pocket/NAME'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS, ArrayPicture, Item, Listing
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import Claim, source
from vpeft.errors import nearest

if TYPE_CHECKING:
    from vpeft.data.pocket import PocketTask

_PREFIX = "pocket/"


def _tasks() -> Mapping[str, PocketTask]:
    # Late: the suite is only needed when one of its tasks is asked for.
    from vpeft.data.pocket import pocket_tasks

    return pocket_tasks()


@source
class Pocket:
    """Tasks of the offline suite, each with its own splits."""

    name = "pocket"
    title = "a task of the offline suite, 'pocket/NAME'"

    def claims(self, config: DataConfig) -> Claim:
        if not config.source.startswith(_PREFIX):
            return Claim.NONE
        # A folder of that name may be meant instead: then neither is taken without asking.
        return Claim.LIKENESS if Path(config.source).exists() else Claim.MARK

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
