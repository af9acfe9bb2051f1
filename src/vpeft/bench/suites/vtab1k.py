"""VTAB-1k: 19 tasks of 1,000 training images, in three groups (Zhai et al. 2019, arXiv 1910.04867).

`vpeft data vtab1k` gets the data and proves them. Tables give the mean of the 19 tasks, or the mean of the three
groups' means, which is 1.5 to 2.5 points higher: say which.
"""

from __future__ import annotations

from vpeft.bench.listed_task import IncompleteData, listed_task
from vpeft.bench.suite import BenchTask, DataFolder, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.sources.vtab import VTAB1k
from vpeft.data.vtab1k.facts import FACTS, GROUPS
from vpeft.data.vtab1k.layout import find_task, tasks_root

NAME = "vtab1k"


def _open(name: str, data: DataFolder) -> BenchTask:
    folder = find_task(tasks_root(data.root), name)
    if folder is None:
        raise IncompleteData(f"{data.root} has no folder {name} with the lists of that task.")
    listing = VTAB1k().read(DataConfig(source=str(folder)))
    if "val" not in listing.splits:
        raise IncompleteData(f"{folder} has no train800.txt and val200.txt: rates are chosen on the 200.")
    labels = [str(number) for number in range(FACTS[name].classes)] if data.exact else None
    splits = dict(listing.splits)
    return listed_task(NAME, name, GROUPS[name], splits, labels=labels, facts=FACTS[name], exact=data.exact)


SUITE = Suite(
    name=NAME,
    title="VTAB-1k",
    about="19 tasks in three groups: natural, specialised, structured; 800 + 200 training images and the full test.",
    groups=GROUPS,
    tiers={
        "smoke": Tier(protocol="vtab1k-smoke@1", seeds=1, exact=False),
        "full": Tier(protocol="vtab1k@1", seeds=3),
        "v-petl": Tier(protocol="vtab1k@v-petl", seeds=1),
        "noah": Tier(protocol="vtab1k@noah", seeds=1),
        "vpt": Tier(protocol="vtab1k@vpt", seeds=5),
        "osu": Tier(protocol="vtab1k@osu", seeds=1),
    },
    default_tier="full",
    open_in=_open,
    layout="TASK/train800.txt, val200.txt, test.txt and images/, as vpeft data vtab1k makes them",
    licence="that of each task",
    facts=FACTS,
)
