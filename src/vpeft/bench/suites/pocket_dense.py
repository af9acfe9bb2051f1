"""pocket-dense: five tasks of dense prediction on three offline sets of 128 x 128 pixels.

The sets and how they are made are in `vpeft.data.pocket_dense`, which also keeps the digests of all splits. Three
tasks learn from the same pictures of `scenes`: boxes, boxes with masks, and depth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from vpeft.bench.key import canonical
from vpeft.bench.sealed import SealedTest
from vpeft.bench.splits import SplitItems
from vpeft.bench.suite import BenchTask, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.items import SPLITS
from vpeft.data.pocket_dense import pocket_dense_sets
from vpeft.data.pocket_dense.dense_set import SIDE, digest, stored_digests
from vpeft.data.sources.registry import find_source
from vpeft.errors import VpeftError
from vpeft.task import get_task

NAME = "pocket-dense"
# Heads are sized so that a run takes minutes on a processor: objects are 10 to 80 pixels wide, anchors 12, 24, 48, 96
# and 192.
_REGIONS = "channels=64, hidden=256, anchor_scale=3, proposals=100, rois=32, detections=20"


class OtherPictures(VpeftError):
    """A split is not the one that the suite's results were made with."""


@dataclass(frozen=True)
class _Learnt:
    """Which set a task learns from, and what."""

    source: str
    task: str
    options: dict[str, Any]


# Lakes are a fiftieth of the pixels of `land`, which the Dice part of the loss makes up for.
_TASKS = {
    "land": _Learnt("land", "semantic_segmentation", {"head_kind": "linear_map", "dice": 1.0}),
    "digits": _Learnt("digits", "instance_segmentation", {"head_kind": f"mask_rcnn({_REGIONS}, mask_channels=32)"}),
    "scenes": _Learnt("scenes", "detection", {"head_kind": f"faster_rcnn({_REGIONS})"}),
    "scenes-masks": _Learnt(
        "scenes", "instance_segmentation", {"head_kind": f"mask_rcnn({_REGIONS}, mask_channels=32)"}
    ),
    "scenes-depth": _Learnt("scenes", "depth", {"head_kind": "linear_map"}),
}


def _open(name: str) -> BenchTask:
    learnt = _TASKS[name]
    one = pocket_dense_sets()[learnt.source]
    digests = {split: digest(pictures) for split, pictures in one.splits().items()}
    for split, found in digests.items():
        stored = stored_digests().get(learnt.source, {}).get(split)
        if stored is not None and found != stored:
            raise OtherPictures(
                f"The split {split!r} of {NAME}/{learnt.source} is {found[:12]} (sha256), but the suite states"
                f" {stored[:12]}: a package that it is made from has another version. Its results would not be"
                " comparable."
            )
    task = get_task(learnt.task)
    config = DataConfig(source=f"{NAME}/{learnt.source}", target=task.target_kind)
    listing = find_source(config).read(config)
    train, val, test = (SplitItems(tuple(listing.splits[split]), task.target_kind) for split in SPLITS)
    labels = tuple(listing.labels or ())
    stated = {
        "suite": NAME,
        "name": name,
        "labels": labels,
        "task": learnt.task,
        "options": learnt.options,
        "side": SIDE,
        "splits": digests,
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
        learns=task(**learnt.options),
        image_size=(SIDE, SIDE),
    )


SUITE = Suite(
    name=NAME,
    title="pocket-dense",
    about="Five offline tasks of dense prediction: semantic and instance segmentation, detection, depth; 400 + 200 +"
    " 400 images each.",
    groups={
        "land": "semantic",
        "digits": "instance",
        "scenes": "detection",
        "scenes-masks": "instance",
        "scenes-depth": "depth",
    },
    tiers={
        "smoke": Tier(protocol="pocket-dense-smoke@1", seeds=1, tasks=("land",)),
        "demo": Tier(protocol="pocket-dense-demo@1", seeds=1, tasks=("scenes-masks",)),
        "quick": Tier(protocol="pocket-dense-quick@1", seeds=1, tasks=("land", "digits", "scenes")),
        "full": Tier(protocol="pocket-dense@1", seeds=3, tasks=("land", "digits", "scenes", "scenes-depth")),
    },
    default_tier="quick",
    open=_open,
    metric="",
    licence="that of each set; see vpeft.data.pocket_dense",
)

# The rows of the survey's benchmark of dense prediction.
METHODS = (
    "linear_probe",
    "full_finetuning",
    "bitfit",
    "ln_tune",
    "partial_k(k=1)",
    "adapter",
    "lora",
    "adaptformer",
    "lorand",
    "e3va",
    "mona",
)
