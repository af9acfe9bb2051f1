"""FGVC: five sets of birds, flowers, dogs and cars with VPT's splits (Jia et al. 2022, arXiv 2203.12119)."""

from __future__ import annotations

from vpeft.bench.listed_task import IncompleteData, listed_task
from vpeft.bench.suite import BenchTask, DataFolder, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.set_facts import SetFacts
from vpeft.data.sources.fgvc import FGVC

NAME = "fgvc"
# Where archives of the five keep them.
FOLDERS = {
    "cub": "CUB_200_2011",
    "nabirds": "nabirds",
    "flowers": "OxfordFlower",
    "dogs": "StanfordDogs",
    "cars": "StanfordCars",
}
_TENTH = "The validation images are a tenth of the official training images, drawn by VPT's authors."
_RESEARCH = "for research and education, not commercial"
FACTS = {
    "cub": SetFacts(
        title="CUB-200-2011",
        classes=200,
        train=5_394,
        val=600,
        test=5_794,
        licence=_RESEARCH,
        source="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        notes=(_TENTH, "Some images are in ImageNet, too."),
    ),
    "nabirds": SetFacts(
        title="NABirds",
        classes=555,
        train=21_536,
        val=2_393,
        test=24_633,
        licence=_RESEARCH,
        source="https://dl.allaboutbirds.org/nabirds",
        notes=(_TENTH, "Class ids have gaps: they are those of a tree of 1,011 nodes."),
    ),
    "flowers": SetFacts(
        title="Oxford Flowers",
        classes=102,
        train=1_020,
        val=1_020,
        test=6_149,
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        notes=("The official splits.",),
    ),
    "dogs": SetFacts(
        title="Stanford Dogs",
        classes=120,
        train=10_800,
        val=1_200,
        test=8_580,
        licence="that of ImageNet, whose images these are",
        source="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        notes=(_TENTH, "The images are ImageNet's: a backbone trained on ImageNet has seen them with their labels."),
    ),
    "cars": SetFacts(
        title="Stanford Cars",
        classes=196,
        train=7_329,
        val=815,
        test=8_041,
        licence=_RESEARCH,
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
        notes=(_TENTH,),
    ),
}


def _open(name: str, data: DataFolder) -> BenchTask:
    places = [data.root / FOLDERS[name], data.root / name]
    folder = next((place for place in places if (place / "train.json").is_file()), None)
    if folder is None:
        raise IncompleteData(f"{data.root} has no {FOLDERS[name]}/train.json.")
    listing = FGVC().read(DataConfig(source=str(folder)))
    missing = [split for split in ("val", "test") if split not in listing.splits]
    if missing:
        raise IncompleteData(f"{folder} has no {' and no '.join(f'{split}.json' for split in missing)}.")
    return listed_task(NAME, name, "fine-grained", dict(listing.splits), facts=FACTS[name], exact=data.exact)


SUITE = Suite(
    name=NAME,
    title="FGVC",
    about="Five sets of fine-grained classes with VPT's splits: birds twice, flowers, dogs, cars.",
    groups=dict.fromkeys(FACTS, "fine-grained"),
    tiers={
        "smoke": Tier(protocol="fgvc-smoke@1", seeds=1, exact=False),
        "full": Tier(protocol="fgvc@1", seeds=3),
        "v-petl": Tier(protocol="fgvc@v-petl", seeds=1),
    },
    default_tier="full",
    open_in=_open,
    layout="a folder for each set (CUB_200_2011, nabirds, OxfordFlower, StanfordDogs, StanfordCars) with train.json,"
    " val.json, test.json and its images",
    licence="that of each set",
    facts=FACTS,
)
