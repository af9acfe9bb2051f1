"""pocket-multi: classes, depth, normals, edges and things that stand out, of the drawn halls of pocket-dense/scenes.

Each is a task of its own, and `all` learns them together with one adapter and a head for each. All targets are exact:
the program that draws the pictures knows them. Heads, sizes and scores are the same in `all` and alone, so that the
tasks alone, fully fine-tuned, are what delta_m compares with.
"""

from __future__ import annotations

import hashlib
from typing import Any

from vpeft.bench.key import canonical
from vpeft.bench.sealed import SealedTest
from vpeft.bench.splits import SplitItems
from vpeft.bench.suite import BenchTask, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS
from vpeft.data.pocket_dense.dense_set import SIDE, stored_digests
from vpeft.data.several import read_listing
from vpeft.data.sources.registry import find_source
from vpeft.data.target import target_of
from vpeft.tasks.multi_task import MultiTask

NAME = "pocket-multi"
SOURCE = "pocket-dense/scenes"
TOGETHER = "all"
# Names of the tasks, and how each is learnt; a linear map of the last stage keeps runs short.
PARTS: dict[str, dict[str, Any]] = {
    "semantic": {"name": "semantic_segmentation", "head": "linear_map"},
    "depth": {"name": "depth", "head": "linear_map", "loss": "l1"},
    "normals": {"name": "surface_normals", "head": "linear_map"},
    "edges": {"name": "edges", "head": "linear_map"},
    "saliency": {"name": "saliency", "head": "linear_map"},
}
# The losses of MTLoRA's protocol are weighed 1, 1, 10, 50 and 5.
WEIGHTS = {"semantic": 1.0, "depth": 1.0, "normals": 10.0, "edges": 50.0, "saliency": 5.0}


def task_of(name: str) -> MultiTask:
    """One of the tasks by itself, or all of them."""
    if name == TOGETHER:
        return MultiTask(parts=dict(PARTS), weights=WEIGHTS)
    return MultiTask(parts={name: PARTS[name]})


def _open(name: str) -> BenchTask:
    learns = task_of(name)
    kinds = learns.target_kind
    config = DataConfig(source=SOURCE, target=kinds)
    listing = read_listing(find_source(config), config)
    train, val, test = (SplitItems(tuple(listing.splits[split]), kinds) for split in SPLITS)
    labels = tuple(target_of(kinds).labels(listing.splits["train"], listing.labels))
    sets = ("scenes", "scenes-normals") if "normals" in learns.parts else ("scenes",)
    stated = {
        "suite": NAME,
        "name": name,
        "labels": labels,
        "options": learns.model_dump(mode="json"),
        "side": SIDE,
        "splits": {one: stored_digests().get(one, {}) for one in sets},
    }
    return BenchTask(
        suite=NAME,
        name=name,
        group=SUITE.groups[name],
        labels=labels,
        train=train,
        val=val,
        test=SealedTest(f"{NAME}/{name}", lambda: test),
        digest=hashlib.sha256(canonical(stated).encode()).hexdigest(),
        learns=learns,
        image_size=(SIDE, SIDE),
    )


SUITE = Suite(
    name=NAME,
    title="pocket-multi",
    about="Five offline tasks on the same pictures, and all of them with one adapter; 400 + 200 + 400 images.",
    groups={**dict.fromkeys(PARTS, "alone"), TOGETHER: "together"},
    tiers={
        "smoke": Tier(protocol="pocket-multi-smoke@1", seeds=1, tasks=(TOGETHER,)),
        "quick": Tier(protocol="pocket-multi-quick@1", seeds=1),
        "full": Tier(protocol="pocket-multi@1", seeds=3),
    },
    default_tier="quick",
    open=_open,
    metric="",
    licence="that of each set; see vpeft.data.pocket_dense",
)
