"""Small copies of VTAB-1k in the layout of the published archive, and full data sets that hold their images."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vpeft.data.set_facts import SetFacts
from vpeft.data.vtab1k.facts import FACTS

SIZES = {"train800": 8, "val200": 4, "test": 6}
# What a small copy is compared with.
SMALL: dict[str, SetFacts] = {
    name: facts.model_copy(update={"train": 8, "val": 4, "test": 6}) for name, facts in FACTS.items()
}


def pixels(task: str, number: int, side: int = 12) -> np.ndarray:
    """Image `number` of the full set of a task, uint8 (side, side, 3): smooth, so that JPEG keeps most of it."""
    random = np.random.default_rng([*task.encode(), number])
    small = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR))


def write_copy(root: Path, tasks: Mapping[str, int], sizes: Mapping[str, int] = SIZES, classes: int = 2) -> None:
    """Write tasks as NOAH's script does: JPEG files of quality 75, numbered anew in each split.

    Args:
        tasks: for each the first number of its images in the full set.
        sizes: images in each split.
        classes: labels take turns.
    """
    for task, first in tasks.items():
        folder = root / task
        numbers, start = {}, first
        for split, size in sizes.items():
            numbers[split] = list(range(start, start + size))
            start += size
        numbers["train800val200"] = numbers["train800"] + numbers["val200"]
        for split, of_split in numbers.items():
            (folder / "images" / split).mkdir(parents=True)
            lines = []
            for place, number in enumerate(of_split):
                name = f"images/{split}/{place:06d}.jpg"
                Image.fromarray(pixels(task, number)).save(folder / name)
                lines.append(f"{name} {number % classes}\n")
            (folder / f"{split}.txt").write_text("".join(lines))


def zipped(root: Path, archive: Path, below: str = "vtab-1k/") -> None:
    """Pack a copy, with a folder around it as the published archive has."""
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                out.write(path, below + path.relative_to(root).as_posix())
