"""A data set written out as a plain folder, SPLIT/LABEL/image, that any tool (and vpeft) reads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from vpeft.data.datasets import Datasets
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
    folders = folder_names(datasets.labels)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for split, images in datasets.splits.items():
            width = len(str(max(len(images) - 1, 1)))
            for label in datasets.labels:
                (building / split / folders[label]).mkdir(parents=True)
            for index, item in enumerate(images.items):
                folder = building / split / folders[item.label]
                stem = f"{index:0{width}d}"
                if item.picture.file is not None:
                    shutil.copyfile(item.picture.file, folder / _file_name(stem, item))
                else:
                    images.image(index).save(folder / f"{stem}.png")
            for label in datasets.labels:  # a class that a split does not have is not an empty class
                folder = building / split / folders[label]
                if not any(folder.iterdir()):
                    folder.rmdir()
        (building / "data.json").write_text(datasets.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        building.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        if out.exists():
            out.rmdir()
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return out


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
