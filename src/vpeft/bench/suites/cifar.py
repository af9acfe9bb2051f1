"""CIFAR-10 and CIFAR-100 whole: 50,000 training images, of which a tenth, drawn here, chooses the rates."""

from __future__ import annotations

from collections.abc import Sequence

from vpeft.bench.listed_task import IncompleteData, listed_task
from vpeft.bench.suite import BenchTask, DataFolder, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.items import Item, SplitName
from vpeft.data.set_facts import SetFacts
from vpeft.data.sources.registry import Claim, find_source, sources
from vpeft.data.splits import hold_out

NAME = "cifar"
VAL = 0.1
# The binary version, or the one that torchvision reads.
FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
_OF_TORCHVISION = {"cifar10": ("cifar-10-batches-py", "CIFAR10"), "cifar100": ("cifar-100-python", "CIFAR100")}
_NOTE = "The validation images are a tenth of the training images of each class, chosen by a hash of their names."


def _facts(title: str, classes: int) -> SetFacts:
    return SetFacts(
        title=title,
        classes=classes,
        train=45_000,
        val=5_000,
        test=10_000,
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        notes=(_NOTE,),
    )


FACTS = {"cifar10": _facts("CIFAR-10", 10), "cifar100": _facts("CIFAR-100", 100)}


def _open(name: str, data: DataFolder) -> BenchTask:
    config = DataConfig(source=str(data.root / FOLDERS[name]))
    if sources()["cifar_binary"].claims(config) is Claim.NONE:
        folder, known = _OF_TORCHVISION[name]
        if not (data.root / folder).is_dir():
            raise IncompleteData(f"{data.root} has neither {FOLDERS[name]} nor {folder}.")
        config = DataConfig(source=f"torchvision:{known}", root=data.root)
    listing = find_source(config).read(config)
    train, val = hold_out(listing.splits["train"], VAL, 0)
    splits: dict[SplitName, Sequence[Item]] = {"train": train, "val": val, "test": listing.splits["test"]}
    return listed_task(NAME, name, "natural", splits, labels=listing.labels, facts=FACTS[name], exact=data.exact)


SUITE = Suite(
    name=NAME,
    title="CIFAR",
    about="CIFAR-10 and CIFAR-100 whole: 45,000 + 5,000 training images and 10,000 of the test, 32 x 32 pixels.",
    groups=dict.fromkeys(FACTS, "natural"),
    tiers={
        "smoke": Tier(protocol="cifar-smoke@1", seeds=1, exact=False),
        "full": Tier(protocol="cifar@1", seeds=3),
    },
    default_tier="full",
    open_in=_open,
    layout="cifar-10-batches-bin and cifar-100-binary (the binary version), or the folders of torchvision",
    licence="none stated",
    facts=FACTS,
)
