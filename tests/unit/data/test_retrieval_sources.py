"""Readers of the four sets of the retrieval papers, on small files of their forms, whole and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from tests.unit.data.pictures import write

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import find_source


def opened(source: Path, **fields: Any) -> Datasets:
    return open_data(DataConfig(source=str(source), **{"split_by": "classes", "val_fraction": 0, **fields}))


def split(data: Datasets) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for name, images in data.splits.items():
        for item in images.items:
            found.setdefault(name, {}).setdefault(item.label, []).append(item.name)
    return found


def cub(root: Path) -> Path:
    """Four kinds, three images each, the third of each in the official test."""
    kinds = ["001.Crow", "002.Jay", "003.Wren", "004.Gull"]
    lines: dict[str, list[str]] = {name: [] for name in ("images", "image_class_labels", "train_test_split")}
    for number in range(12):
        name = f"{kinds[number // 3]}/{number}.jpg"
        write(root / "images" / name)
        lines["images"].append(f"{number + 1} {name}")
        lines["image_class_labels"].append(f"{number + 1} {number // 3 + 1}")
        lines["train_test_split"].append(f"{number + 1} {int(number % 3 < 2)}")
    lines["classes"] = [f"{place + 1} {kind}" for place, kind in enumerate(kinds)]
    for name, content in lines.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")
    return root


def test_cub_by_classes_and_by_images(tmp_path: Path) -> None:
    cub(tmp_path)
    found = split(opened(tmp_path))
    assert {name: list(kinds) for name, kinds in found.items()} == {
        "train": ["001.Crow", "002.Jay"],
        "test": ["003.Wren", "004.Gull"],
    }
    assert sum(len(names) for names in found["test"].values()) == 6
    official = split(opened(tmp_path, split_by="images"))
    assert {name: sum(map(len, kinds.values())) for name, kinds in official.items()} == {"train": 8, "test": 4}
    assert all(len(kinds) == 4 for kinds in official.values())


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("images.txt", "1 a.jpg\n1 b.jpg\n", "line 2"),
        ("images.txt", "one a.jpg\n", "not a new number"),
        ("image_class_labels.txt", "1 9\n", "no class of classes.txt"),
        ("train_test_split.txt", "1 2\n", "0 or 1"),
        ("train_test_split.txt", None, "has no train_test_split.txt"),
    ],
)
def test_a_broken_cub_is_said(tmp_path: Path, file: str, text: str | None, said: str) -> None:
    cub(tmp_path)
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        opened(tmp_path, split_by="images")


def sop(root: Path) -> Path:
    for name, first in (("train", 1), ("test", 4)):
        rows = ["image_id class_id super_class_id path"]
        for number in range(6):
            path = f"chair_final/{name}{number}.JPG"
            write(root / path)
            rows.append(f"{number + 1} {first + number // 2} 1 {path}")
        (root / f"Ebay_{name}.txt").write_text("\n".join(rows) + "\n")
    return root


def test_sop(tmp_path: Path) -> None:
    found = split(opened(sop(tmp_path)))
    assert {name: list(kinds) for name, kinds in found.items()} == {"train": ["1", "2", "3"], "test": ["4", "5", "6"]}
    assert found["train"]["1"] == ["chair_final/train0.JPG", "chair_final/train1.JPG"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id path\n", "expected: image_id class_id"),
        ("image_id class_id super_class_id path\n1 x 1 a.jpg\n", "line 2"),
        ("image_id class_id super_class_id path\n1 2 3\n", "line 2"),
        (None, "has no Ebay_test.txt"),
    ],
)
def test_a_broken_sop_is_said(tmp_path: Path, text: str | None, said: str) -> None:
    sop(tmp_path)
    (tmp_path / "Ebay_test.txt").unlink()
    if text is not None:
        (tmp_path / "Ebay_test.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


def in_shop(root: Path, images: str = "") -> Path:
    rows = []
    for number in range(12):
        name = f"img/WOMEN/id_{number // 3}/{number}.jpg"
        write(root / images / name)
        status = "train" if number < 6 else ("query", "gallery", "gallery")[number % 3]
        rows.append(f"{name}   id_{number // 3}   {status}")
    (root / "Eval").mkdir()
    head = [str(len(rows)), "image_name item_id evaluation_status"]
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join([*head, *rows]) + "\n")
    return root


@pytest.mark.parametrize("images", ["", "Img"])
def test_in_shop_has_queries_and_a_gallery(tmp_path: Path, images: str) -> None:
    data = opened(in_shop(tmp_path, images))
    assert data.test is not None
    assert [item.role for item in data.test.items] == ["query", "gallery", "gallery"] * 2
    assert {item.role for item in data.train.items} == {""}
    assert data.test.labels_present == ["id_2", "id_3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3\nimage_name item_id evaluation_status\n", "lists 0"),
        ("image_name item_id evaluation_status\n", "does not begin"),
        ("1\nimage_name item_id evaluation_status\nimg/a.jpg id_1 val\n", "line 3"),
    ],
)
def test_a_broken_in_shop_is_said(tmp_path: Path, text: str, said: str) -> None:
    in_shop(tmp_path)
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        opened(tmp_path)


def test_in_shop_without_images_is_said(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.txt").write_text("0\nimage_name item_id evaluation_status\n")
    with pytest.raises(DataError, match="no folder img"):
        opened(tmp_path)


KINDS = np.array(["Audi", "BMW", "Fiat", "Volvo"], dtype=object)


def cars(root: Path, form: str) -> Path:
    """Four kinds, three images each, the third of each in the official test."""
    rows = []
    for number in range(12):
        test = number % 3 == 2
        folder = "car_ims" if form == "whole" else "cars_test" if test else "cars_train"
        write(root / folder / f"{number:06d}.jpg")
        rows.append((f"{folder}/{number:06d}.jpg", f"{number:06d}.jpg", number // 3 + 1, int(test)))
    if form == "whole":
        kind = [("relative_im_path", object), ("class", object), ("test", object)]
        table = np.array([(path, number, test) for path, _, number, test in rows], dtype=kind)
        savemat(root / "cars_annos.mat", {"annotations": table, "class_names": KINDS})
        return root
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": KINDS})
    for name, wanted in (("cars_train_annos", 0), ("cars_test_annos_withlabels", 1)):
        table = np.array(
            [(name, number) for _, name, number, test in rows if test == wanted],
            dtype=[("fname", object), ("class", object)],
        )
        savemat(root / "devkit" / f"{name}.mat", {"annotations": table})
    return root


@pytest.mark.parametrize("form", ["whole", "devkit"])
def test_cars_by_classes_and_by_images(tmp_path: Path, form: str) -> None:
    found = split(opened(cars(tmp_path, form)))
    assert {name: sorted(kinds) for name, kinds in found.items()} == {
        "train": ["Audi", "BMW"],
        "test": ["Fiat", "Volvo"],
    }
    assert all(len(names) == 3 for kinds in found.values() for names in kinds.values())
    official = split(opened(tmp_path, split_by="images"))
    assert {name: sum(map(len, kinds.values())) for name, kinds in official.items()} == {"train": 8, "test": 4}


def test_broken_cars_are_said(tmp_path: Path) -> None:
    cars(tmp_path, "devkit")
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DataError, match="classes of the test images"):
        opened(tmp_path)
    (tmp_path / "cars_annos.mat").write_bytes(b"no file of MATLAB at all")
    with pytest.raises(DataError, match="cannot be read as a file of MATLAB"):
        opened(tmp_path)
    savemat(tmp_path / "cars_annos.mat", {"annotations": np.zeros(3)})
    with pytest.raises(DataError, match="relative_im_path"):
        opened(tmp_path)
    kind = [("relative_im_path", object), ("class", object), ("test", object)]
    for number, said in ((0, "from 1 on"), ("x", "no number"), (9, "names 4 classes")):
        table = np.array([("a.jpg", number, 0)] * 2, dtype=kind)
        savemat(tmp_path / "cars_annos.mat", {"annotations": table, "class_names": KINDS})
        with pytest.raises(DataError, match=said):
            opened(tmp_path)


def test_each_layout_is_recognised(tmp_path: Path) -> None:
    made = {"cub": cub, "sop": sop, "in_shop": in_shop, "cars196": lambda root: cars(root, "whole")}
    for name, make in made.items():
        assert find_source(DataConfig(source=str(make(tmp_path / name)))).name == name


def test_a_missing_image_is_a_problem_and_too_many_are_an_error(tmp_path: Path) -> None:
    sop(tmp_path)
    (tmp_path / "chair_final" / "train0.JPG").unlink()
    with pytest.raises(DataError, match="missing"):
        opened(tmp_path)
