"""A suite of your own: each folder in the one that you name is a task, in any layout of images that vpeft reads."""

from __future__ import annotations

from pathlib import Path

from vpeft.bench.listed_task import IncompleteData, listed_task
from vpeft.bench.suite import BenchTask, DataFolder, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.images import is_hidden
from vpeft.data.sources.registry import Claim, sources

NAME = "folder"


def _tasks(root: Path) -> dict[str, str]:
    """The data sets in a folder."""
    found = [
        path.name
        for path in sorted(root.expanduser().iterdir())
        if path.is_dir() and not is_hidden(path.name) and _is_set(path)
    ]
    if not found:
        raise IncompleteData(
            f"{root} holds no data set. Each folder in it is a task, with a folder of images for each class, or with"
            " train, val and test of such folders."
        )
    return dict.fromkeys(found, "own")


def _is_set(path: Path) -> bool:
    config = DataConfig(source=str(path))
    return any(one.claims(config) is not Claim.NONE for one in sources().values())


def _open(name: str, data: DataFolder) -> BenchTask:
    opened = open_data(DataConfig(source=str(data.root / name), check="header"))
    splits = {split: images.items for split, images in opened.splits.items()}
    if "test" not in splits:
        raise IncompleteData(f"{data.root / name} has no test images.")
    return listed_task(NAME, name, "own", splits, labels=opened.labels, exact=data.exact)


SUITE = Suite(
    name=NAME,
    title="Folders",
    about="Your own data sets: each folder in --root is a task. Splits that are missing are drawn by a hash of names.",
    groups={},
    tiers={
        "quick": Tier(protocol="folder-quick@1", seeds=1),
        "full": Tier(protocol="folder@1", seeds=3),
    },
    default_tier="quick",
    open_in=_open,
    tasks_in=_tasks,
    layout="a folder for each task, with a folder of images for each class or train, val and test of such folders",
    licence="yours",
)
