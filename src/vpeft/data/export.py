"""A data set written out as a plain folder that any tool (and vpeft) reads.

One label for each image is SPLIT/LABEL/image; masks are SPLIT/images and SPLIT/masks, and depth maps SPLIT/images and
SPLIT/depth; objects are images/SPLIT and COCO's annotations/instances_SPLIT.json; several labels or values are
SPLIT/image with a list.csv.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vpeft.atomic import disk_full, is_full, new_folder, sweep
from vpeft.data.clips.clip import Clip, ClipFile, ClipPicture
from vpeft.data.datasets import Datasets
from vpeft.data.image_set import ImageSet
from vpeft.data.items import Item
from vpeft.data.objects import Objects, Polygons, Shape
from vpeft.data.problems import DataError
from vpeft.data.sources.folder import NOT_CLASSES
from vpeft.data.steps import height_and_width
from vpeft.errors import need_extra
from vpeft.safe_text import write_list


def export_folder(datasets: Datasets, out: Path) -> Path:
    """Write all splits of `datasets` into `out`, which must not exist or be empty; returns it.

    Image files are copied as they are; other images become PNG, without loss. `data.json` is the manifest. The folder
    appears complete or not at all. Raises `DataError` if `out` holds something, `DiskFull` if there is no room.
    """
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder. Name a new one.")
    sweep(out)  # what a killed export left
    building, lock = new_folder(out)
    try:
        kind = datasets.train.target.name
        if kind == "label":
            _write_classes(datasets, building)
        elif kind == "mask":
            _write_pairs(datasets, building)
        elif kind == "depth":
            _write_depths(datasets, building)
        elif kind == "objects":
            _write_coco(datasets, building)
        else:
            _write_list(datasets, building)
        (building / "data.json").write_text(datasets.manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        building.rename(out)
    except OSError as error:
        if is_full(error):
            raise disk_full(out.parent, f"{out.name} could not be written", "Nothing was left there.") from None
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if lock >= 0:
            os.close(lock)
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


def _write_depths(datasets: Datasets, building: Path) -> None:
    """SPLIT/images and SPLIT/depth, a depth map as an array in the unit of depth, NaN where nothing is known."""
    for split, images in datasets.splits.items():
        for folder in ("images", "depth"):
            (building / split / folder).mkdir(parents=True)
        for index in range(len(images)):
            name = _write_image(images, index, building / split / "images")
            np.save(building / split / "depth" / f"{Path(name).stem}.npy", images.drawn(index).numpy())


def _write_coco(datasets: Datasets, building: Path) -> None:
    """images/SPLIT and annotations/instances_SPLIT.json, category n + 1 for class n, masks as run-length codes.

    Polygons and codes stay as they are. An area is the stated one, else that of the mask, else that of the box.
    """
    (building / "annotations").mkdir()
    number = {label: place + 1 for place, label in enumerate(datasets.labels)}
    categories = [{"id": place, "name": label} for label, place in number.items()]
    for split, images in datasets.splits.items():
        (building / "images" / split).mkdir(parents=True)
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, item in enumerate(images.items):
            height, width = height_and_width(images.image(index))
            name = _write_image(images, index, building / "images" / split)
            listed.append({"id": index + 1, "file_name": name, "height": height, "width": width})
            for one in coco_annotations(item.target, number, height, width):
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **one})
        told = {"images": listed, "annotations": annotations, "categories": categories}
        file = building / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(told, allow_nan=False) + "\n", encoding="utf-8")


def coco_annotations(objects: Objects, number: Mapping[str, int], height: int, width: int) -> list[dict[str, Any]]:
    """The objects of an image (height, width) as COCO's annotations, without ids.

    `number` gives the category of each class.
    """
    made = []
    for place, label in enumerate(objects.labels):
        left, top, right, bottom = (float(one) for one in objects.boxes[place])
        one: dict[str, Any] = {
            "category_id": number[label],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": int(objects.crowd[place]),
        }
        shape = None if objects.shapes is None else objects.shapes[place]
        if shape is not None:
            mask = shape.mask(height, width)
            one["segmentation"], one["area"] = _segmentation(shape, mask), float(mask.sum())
        if objects.areas is not None and objects.areas[place] > 0:
            one["area"] = float(objects.areas[place])
        made.append(one)
    return made


def _segmentation(shape: Shape, mask: NDArray[np.uint8]) -> Any:
    if isinstance(shape, Polygons):
        return [part.tolist() for part in shape.parts]
    codec = need_extra("faster_coco_eval.core.mask", "dense")
    code = codec.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def _write_list(datasets: Datasets, building: Path) -> None:
    """SPLIT/image, and list.csv with the columns path, labels or the values, split."""
    rows = []
    for split, images in datasets.splits.items():
        (building / split).mkdir()
        for index, item in enumerate(images.items):
            name = _write_image(images, index, building / split)
            rows.append([f"{split}/{name}", *images.target.cells(item), split])
    with (building / "list.csv").open("w", newline="", encoding="utf-8") as file:
        write_list(file, ["path", *datasets.train.target.list_columns(datasets.labels), "split"], rows)


def _write_image(images: ImageSet, index: int, folder: Path) -> str:
    """Copy the file, or write a PNG, or an array where there are other than three channels; returns its name."""
    item, stem = images.items[index], f"{index:0{len(str(max(len(images) - 1, 1)))}d}"
    if isinstance(item.picture, ClipPicture) and not _is_whole_video(item.picture):
        return _write_frames(images, index, folder / stem)
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


def _is_whole_video(picture: ClipPicture) -> bool:
    return isinstance(picture, ClipFile) and picture.file is not None and picture.part is None


def _write_frames(images: ImageSet, index: int, folder: Path) -> str:
    """Write the frames of a clip as PNG files into a folder of their own; returns its name."""
    folder.mkdir()
    clip: Clip = images.image(index)
    for number in range(clip.count):
        frame = clip.frames([number])[0]
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{number:05d}.png")
    return folder.name


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
