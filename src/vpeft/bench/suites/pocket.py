"""pocket: nine tasks of 64 x 64 pixels that the package draws or that install with it; a benchmark without a network.

The tasks, their groups and how they are made are in `vpeft.data.pocket`, which also keeps the digests of all splits.
"""

from __future__ import annotations

from vpeft.bench.splits import SplitArrays
from vpeft.bench.suite import BenchTask, Suite, Tier, make_task
from vpeft.data.pocket import digest, pocket_tasks
from vpeft.data.pocket.task import SIZES, PocketTask, stored_digests
from vpeft.data.set_facts import SetFacts
from vpeft.errors import VpeftError


class OtherPictures(VpeftError):
    """A split is not the one that the suite's results were made with."""


def _open(name: str) -> BenchTask:
    task = pocket_tasks()[name]
    splits = {split: SplitArrays(*pair) for split, pair in task.splits().items()}
    for split, images in splits.items():
        stored, found = stored_digests().get(name, {}).get(split), digest(*images)
        if stored is not None and found != stored:
            raise OtherPictures(
                f"The split {split!r} of pocket/{name} is {found[:12]} (sha256), but the suite states {stored[:12]}: "
                "a package that it is made from has another version. Its results would not be comparable."
            )
    return make_task("pocket", name, task.group, task.labels, splits["train"], splits["val"], splits["test"])


def _facts(task: PocketTask) -> SetFacts:
    return SetFacts(
        title=task.title,
        classes=len(task.labels),
        **{split: SIZES[split] for split in ("train", "val", "test")},
        licence=task.licence,
        source=task.source,
    )


SUITE = Suite(
    name="pocket",
    title="pocket",
    about="Nine offline tasks in three groups: natural, specialised, structured; 800 + 200 + 1,200 images each.",
    groups={name: task.group for name, task in pocket_tasks().items()},
    tiers={
        "smoke": Tier(protocol="pocket-smoke@1", seeds=1, tasks=("handwriting", "orientation")),
        "quick": Tier(protocol="pocket-quick@1", seeds=1),
        "one-rate": Tier(protocol="pocket-one-rate@1", seeds=3),
        "demo": Tier(protocol="pocket-demo@1", seeds=1, tasks=("orientation",)),
        "full": Tier(protocol="pocket@1", seeds=3),
    },
    default_tier="quick",
    open=_open,
    licence="that of each task",
    facts={name: _facts(task) for name, task in pocket_tasks().items()},
)
