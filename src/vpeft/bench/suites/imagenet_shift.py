"""ImageNet with 16 images of each class, tested on its validation images and on four variants.

ImageNet-A and ImageNet-R have 200 of the classes: a model is trained on these 200 alone. (NOAH trains on all 1,000 and
leaves out the other 800 answers in the test; its numbers are not comparable with these.) Training and validation images
are chosen from the training folders by a hash of their names: 16 and then 4 of each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vpeft.bench.listed_task import IncompleteData, listed_task
from vpeft.bench.suite import BenchTask, DataFolder, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.items import Item, SplitName
from vpeft.data.set_facts import SetFacts
from vpeft.data.sources.folder import Folder
from vpeft.data.splits import at_most

NAME = "imagenet-shift"
SHOTS, VAL_SHOTS = 16, 4
TRAIN, SAME = "imagenet/train", "imagenet/val"
# Folders as the archives of the variants have them.
FOLDERS = {
    "imagenet": (SAME,),
    "imagenet-v2": ("imagenetv2-matched-frequency-format-val", "imagenet-v2"),
    "imagenet-sketch": ("sketch", "imagenet-sketch"),
    "imagenet-a": ("imagenet-a",),
    "imagenet-r": ("imagenet-r",),
}
_200 = "Trained and tested on the 200 classes that it has."


def _facts(title: str, classes: int, test: int, licence: str, source: str, *notes: str) -> SetFacts:
    return SetFacts(
        title=title,
        classes=classes,
        train=classes * SHOTS,
        val=classes * VAL_SHOTS,
        test=test,
        licence=licence,
        source=source,
        notes=notes,
    )


FACTS = {
    "imagenet": _facts("ImageNet", 1000, 50_000, "for research, not commercial", "https://www.image-net.org"),
    "imagenet-v2": _facts("ImageNetV2", 1000, 10_000, "MIT", "https://github.com/modestyachts/ImageNetV2"),
    "imagenet-sketch": _facts("ImageNet-Sketch", 1000, 50_889, "MIT", "https://github.com/HaohanWang/ImageNet-Sketch"),
    "imagenet-a": _facts("ImageNet-A", 200, 7_500, "MIT", "https://github.com/hendrycks/natural-adv-examples", _200),
    "imagenet-r": _facts("ImageNet-R", 200, 30_000, "MIT", "https://github.com/hendrycks/imagenet-r", _200),
}


def _open(name: str, data: DataFolder) -> BenchTask:
    train = _of_classes(data.root / TRAIN)
    folder = next((data.root / one for one in FOLDERS[name] if (data.root / one).is_dir()), None)
    if folder is None:
        raise IncompleteData(f"{data.root} has no folder {FOLDERS[name][0]}.")
    test = _of_classes(folder)
    ids = sorted({item.label for item in train})
    if all(item.label.isdigit() for item in test):
        # Folders of ImageNetV2 are numbers of classes, counted in the order of their ids.
        if any(int(item.label) >= len(ids) for item in test):
            raise IncompleteData(f"{folder} has folders beyond the {len(ids)} classes of {TRAIN}.")
        test = [Item(item.name, ids[int(item.label)], item.picture) for item in test]
    classes = sorted({item.label for item in test})
    unknown = sorted(set(classes) - set(ids))
    if unknown:
        raise IncompleteData(f"{folder} has classes that {TRAIN} has not: {', '.join(unknown[:5])}.")
    train = [item for item in train if item.label in set(classes)]
    both = at_most(train, SHOTS + VAL_SHOTS, 0)
    learnt = {item.name for item in at_most(train, SHOTS, 0)}
    splits: dict[SplitName, Sequence[Item]] = {
        "train": [item for item in both if item.name in learnt],
        "val": [item for item in both if item.name not in learnt],
        "test": test,
    }
    group = SUITE.groups[name]
    return listed_task(NAME, name, group, splits, labels=classes, facts=FACTS[name], exact=data.exact)


def _of_classes(folder: Path) -> list[Item]:
    if not folder.is_dir():
        raise IncompleteData(f"There is no folder {folder} with a folder for each class.")
    return Folder().read(DataConfig(source=str(folder))).whole


SUITE = Suite(
    name=NAME,
    title="ImageNet and its variants",
    about="Learnt from 16 images of each class of ImageNet; tested on its validation images, V2, Sketch, A and R.",
    groups={"imagenet": "the same", **dict.fromkeys([name for name in FACTS if name != "imagenet"], "shifted")},
    tiers={
        "smoke": Tier(protocol="imagenet-shift-smoke@1", seeds=1, exact=False),
        "full": Tier(protocol="imagenet-shift@1", seeds=3),
    },
    default_tier="full",
    open_in=_open,
    layout="imagenet/train and imagenet/val with a folder for each class, imagenetv2-matched-frequency-format-val,"
    " sketch, imagenet-a, imagenet-r",
    licence="that of each set",
    facts=FACTS,
)
