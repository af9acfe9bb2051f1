"""Few-shot FGVC: five sets with 1, 2, 4, 8 and 16 images of each class, in three draws (NOAH, arXiv 2206.04673).

Each draw is a task of its own, so that a table shows how much the draw matters. There are no validation images.
"""

from __future__ import annotations

from vpeft.bench.listed_task import IncompleteData, listed_task
from vpeft.bench.suite import BenchTask, DataFolder, Suite, Tier
from vpeft.data.config import DataConfig
from vpeft.data.set_facts import SetFacts
from vpeft.data.sources.few_shot_lists import FewShotLists

NAME = "fgvc-few-shot"
SHOTS, DRAWS = (1, 2, 4, 8, 16), (0, 1, 2)
# The folders of NOAH's lists, one of them with its slip.
FOLDERS = {
    "food101": ("food101", "food-101"),
    "pets": ("oxford-pets", "oxford_pets"),
    "cars": ("standford-cars", "stanford-cars", "stanford_cars"),
    "flowers": ("oxford-flowers102", "oxford_flowers"),
    "aircraft": ("fgvc-aircraft", "fgvc_aircraft"),
}
SETS = {
    "food101": SetFacts(
        title="Food-101",
        classes=101,
        test=30_300,
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "pets": SetFacts(
        title="Pets",
        classes=37,
        test=3_669,
        licence="CC BY-SA 4.0",
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        notes=("The lists of one shot have each line twice; it counts once.",),
    ),
    "cars": SetFacts(
        title="Stanford Cars",
        classes=196,
        test=8_041,
        licence="for research and education, not commercial",
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
    ),
    "flowers": SetFacts(
        title="Oxford Flowers",
        classes=102,
        test=2_463,
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        notes=("CoOp's split, not the official one.",),
    ),
    "aircraft": SetFacts(
        title="FGVC-Aircraft",
        classes=100,
        test=3_333,
        licence="for research, not commercial",
        source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
}
# Task -> set, shots, draw.
TASKS = {f"{name}-{shots}-{draw}": (name, shots, draw) for shots in SHOTS for name in SETS for draw in DRAWS}


def _open(task: str, data: DataFolder) -> BenchTask:
    name, shots, draw = TASKS[task]
    folder = next((data.root / one for one in FOLDERS[name] if (data.root / one / "annotations").is_dir()), None)
    if folder is None:
        raise IncompleteData(f"{data.root} has no {FOLDERS[name][0]}/annotations with the lists of that set.")
    listing = FewShotLists().read(DataConfig(source=str(folder), per_class=shots, seed=draw))
    splits = dict(listing.splits)
    return listed_task(NAME, task, SUITE.groups[task], splits, facts=SETS[name], exact=data.exact)


def _group(shots: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}"


SUITE = Suite(
    name=NAME,
    title="Few-shot FGVC",
    about="Five sets with 1, 2, 4, 8 and 16 training images of each class, three draws of each: 75 tasks.",
    groups={task: _group(shots) for task, (_, shots, _) in TASKS.items()},
    tiers={
        "smoke": Tier(
            protocol="fgvc-few-shot-smoke@1", seeds=1, tasks=tuple(f"{name}-1-0" for name in SETS), exact=False
        ),
        "quick": Tier(protocol="fgvc-few-shot@noah", seeds=1, tasks=tuple(f"{name}-4-0" for name in SETS)),
        "full": Tier(protocol="fgvc-few-shot@noah", seeds=1),
    },
    default_tier="full",
    open_in=_open,
    layout="a folder for each set (food101, oxford-pets, standford-cars, oxford-flowers102, fgvc-aircraft) with"
    " annotations/train_meta.list.num_shot_K.seed_S, annotations/test_meta.list and images/",
    licence="that of each set",
    facts={task: SETS[name] for task, (name, _, _) in TASKS.items()},
)
