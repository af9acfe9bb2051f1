"""A data set written out as a plain folder that any tool (and vpeft) reads.

One label for each image is SPLIT/LABEL/image, masks are SPLIT/images and SPLIT/masks, and several labels or values are
SPLIT/image with a list.csv.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vpeft.data.datasets import Datasets
from vpeft.data.image_set import ImageSet
from vpeft.data.items import Item
from vpeft.data.problems import DataError
from vpeft.data.sources.folder import NOT_CLASSES


def export_folder(datasets: Datasets, out: Path) -> Path:
    """Write all splits of `datasets` into `out`, which must not exist or be empty; returns it.

    Image files are copied as they are; other images become PNG, without loss. `data.json` is the manifest. The folder
    appears complete or not at all. Raises `DataError` if `out` holds something.
    """
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder. Name a new one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        kind = datasets.train.target.name
        if kind == "label":
            _write_classes(datasets, building)
        elif kind == "mask":
            _write_pairs(datasets, building)
        else:
            _write_list(datasets, building)
        (building / "data.json").write_text(datasets.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        building.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return out


def _write_classes(datasets: Datasets, building: Path) -> None:
    """SPLIT/LABEL/image."""
    folders = folder_names(datasets.labels)
    for split, images in datasets.splits.items():
        for label in datasets.labels:
            (building / split / folders[label]).mkdir(parents=True)
        for index, item in enumerate(images.items):
            _write_image(images, index, building / split / folders[item.label])
        for label in datasets.labels:  # a class that a split does not have is not an empty class
            folder = building / split / folders[label]
            if not any(folder.iterdir()):
                folder.rmdir()


def _write_pairs(datasets: Datasets, building: Path) -> None:
    """SPLIT/images and SPLIT/masks, a mask as PNG or, with numbers above 255, as an array; classes.txt."""
    for split, images in datasets.splits.items():
        for folder in ("images", "masks"):
            (building / split / folder).mkdir(parents=True)
        for index in range(len(images)):
            name = _write_image(images, index, building / split / "images")
            mask = images.drawn(index)
            numbers, file = mask.numpy(), building / split / "masks" / Path(name).stem
            if numbers.max(initial=0) > 255:
                np.save(file.with_name(f"{file.name}.npy"), numbers)
            else:
                Image.fromarray(numbers.astype(np.uint8)).save(file.with_name(f"{file.name}.png"))
    (building / "classes.txt").write_text("".join(f"{label}\n" for label in datasets.labels), encoding="utf-8")


def _write_list(datasets: Datasets, building: Path) -> None:
    """SPLIT/image, and list.csv with the columns path, labels or the values, split."""
    columns = datasets.train.target.list_columns(datasets.labels)
    with (building / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *columns, "split"])
        for split, images in datasets.splits.items():
            (building / split).mkdir()
            for index, item in enumerate(images.items):
                name = _write_image(images, index, building / split)
                writer.writerow([f"{split}/{name}", *images.target.cells(item), split])


def _write_image(images: ImageSet, index: int, folder: Path) -> str:
    """Copy the file, or write a PNG, or an array where there are other than three channels; returns its name."""
    item, stem = images.items[index], f"{index:0{len(str(max(len(images) - 1, 1)))}d}"
    if item.picture.file is not None:
        name = _file_name(stem, item)
        shutil.copyfile(item.picture.file, folder / name)
        return name
    image = images.image(index)
    name = f"{stem}.npy" if isinstance(image, Tensor) else f"{stem}.png"
    if isinstance(image, Tensor):
        np.save(folder / name, image.numpy())
    else:
        image.save(folder / name)
    return name


def folder_names(labels: list[str]) -> dict[str, str]:
    """A folder name for each label: what a file system would take for a path or hide is replaced, and none repeats,
    not even where upper and lower case are the same.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        safe = "".join("_" if letter in '/\\:*?"<>|' or ord(letter) < 32 else letter for letter in label).strip(" .")
        safe = f"label{safe}" if not safe or safe in NOT_CLASSES else safe
        name, count = safe, 2
        while name.casefold() in taken:
            name, count = f"{safe}-{count}", count + 1
        taken.add(name.casefold())
        names[label] = name
    return names


def _file_name(stem: str, item: Item) -> str:
    file = item.picture.file
    assert file is not None  # the caller looked
    return f"{stem}_{file.stem}{file.suffix.lower()}".replace(" ", "_")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
