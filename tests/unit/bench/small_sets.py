"""Small files in the layouts of the suites that users keep: a few images of two classes, and their facts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.vtab1k_copy import SIZES, SMALL, write_copy

from vpeft.bench.suites import cifar, fgvc, fgvc_few_shot, imagenet_shift
from vpeft.data.vtab1k.facts import FACTS as VTAB


def picture(label: int, number: int) -> Image.Image:
    """Dark for class 0 and bright for class 1, with noise."""
    random = np.random.default_rng([label, number])
    return Image.fromarray(random.integers(160 * label, 80 + 160 * label, (16, 16, 3), dtype=np.uint8))


def write_vtab(root: Path) -> None:
    write_copy(root, dict.fromkeys(VTAB, 0))


def write_fgvc(root: Path, sizes: tuple[int, int, int] = (8, 4, 6)) -> None:
    for name in fgvc.FOLDERS.values():
        (root / name / "images").mkdir(parents=True)
        number = 0
        for split, size in zip(("train", "val", "test"), sizes, strict=True):
            table = {}
            for _ in range(size):
                picture(number % 2, number).save(root / name / "images" / f"{number}.png")
                table[f"{number}.png"] = 3 + 4 * (number % 2)  # ids with a gap
                number += 1
            (root / name / f"{split}.json").write_text(json.dumps(table))


def write_few_shot(root: Path) -> None:
    for folders in fgvc_few_shot.FOLDERS.values():
        place = root / folders[0]
        (place / "annotations").mkdir(parents=True)
        (place / "images").mkdir()
        for number in range(40):
            picture(number % 2, number).save(place / "images" / f"{number}.png")
        for shots in fgvc_few_shot.SHOTS:
            for draw in fgvc_few_shot.DRAWS:
                lines = [f"{number + 2 * draw}.png {number % 2}\n" for number in range(2 * min(shots, 4))]
                (place / f"annotations/train_meta.list.num_shot_{shots}.seed_{draw}").write_text("".join(lines))
        test = [f"{number} {number % 2}".replace(" ", ".png ") + "\n" for number in range(30, 36)]
        (place / "annotations/test_meta.list").write_text("".join(test))


def write_cifar(root: Path, train: int = 20, test: int = 6) -> None:
    for folder, names, files, coarse in (
        ("cifar-10-batches-bin", "batches.meta.txt", [f"data_batch_{one}.bin" for one in range(1, 6)], b""),
        ("cifar-100-binary", "fine_label_names.txt", ["train.bin"], b"\x00"),
    ):
        place = root / folder
        place.mkdir(parents=True)
        (place / names).write_text("apple\nbear\n\n")
        number = 0
        tests = "test_batch.bin" if coarse == b"" else "test.bin"
        for file, count in (*((one, train // len(files)) for one in files), (tests, test)):
            records = b""
            for _ in range(count):
                image = np.asarray(picture(number % 2, number).resize((32, 32)))
                records += coarse + bytes([number % 2]) + image.transpose(2, 0, 1).tobytes()
                number += 1
            (place / file).write_bytes(records)


def write_imagenet(root: Path) -> None:
    ids = [f"n{number:08d}" for number in range(3)]

    def folder(path: Path, name: str, label: int, numbers: range) -> None:
        (path / name).mkdir(parents=True)
        for number in numbers:
            picture(label % 2, number).save(path / name / f"{number}.png")

    for label, one in enumerate(ids):
        folder(root / "imagenet/train", one, label, range(25))
        folder(root / "imagenet/val", one, label, range(100, 102))
        folder(root / "sketch", one, label, range(110, 112))
        folder(root / "imagenetv2-matched-frequency-format-val", str(label), label, range(120, 122))
        if label < 2:
            folder(root / "imagenet-a", one, label, range(130, 132))
            folder(root / "imagenet-r", one, label, range(140, 142))


def write_folders(root: Path) -> None:
    for name, splits in (("whole", [""]), ("split", ["train", "val", "test"])):
        for split in splits:
            for label in range(2):
                place = root / name / split / f"class{label}"
                place.mkdir(parents=True)
                for number in range(10):
                    picture(label, number + 100 * len(split)).save(place / f"{number}.png")


WRITERS = {
    "vtab1k": write_vtab,
    "fgvc": write_fgvc,
    "fgvc-few-shot": write_few_shot,
    "cifar": write_cifar,
    "imagenet-shift": write_imagenet,
    "folder": write_folders,
}


def take_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the published numbers be those of the small files."""
    for name, facts in SMALL.items():
        monkeypatch.setitem(VTAB, name, facts.model_copy(update={"classes": 2}))
    for name, facts in fgvc.FACTS.items():
        small = {"classes": 2, "train": 8, "val": 4, "test": 6}
        monkeypatch.setitem(fgvc.FACTS, name, facts.model_copy(update=small))
    for name, facts in fgvc_few_shot.SETS.items():
        monkeypatch.setitem(fgvc_few_shot.SETS, name, facts.model_copy(update={"classes": 2, "test": 6}))
    for name, facts in cifar.FACTS.items():
        small = {"classes": 2, "train": 18, "val": 2, "test": 6}
        monkeypatch.setitem(cifar.FACTS, name, facts.model_copy(update=small))
    for name, facts in imagenet_shift.FACTS.items():
        classes = 2 if name in ("imagenet-a", "imagenet-r") else 3
        small = {"classes": classes, "train": 16 * classes, "val": 4 * classes, "test": 2 * classes}
        monkeypatch.setitem(imagenet_shift.FACTS, name, facts.model_copy(update=small))


__all__ = ["SIZES", "WRITERS", "picture", "take_small_numbers"]
