"""Splits by classes: none shares a class with another, and nothing that a source holds back is trained on."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tests.unit.data.pictures import write_classes

from vpeft.data.class_splits import split_by_classes, without_classes
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data, open_for_evaluation
from vpeft.data.items import Listing
from vpeft.data.problems import DataError, DataWarning

MANY = {f"{number:02d}": 3 for number in range(10)}


def opened(source: Path, **fields: object) -> Datasets:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return open_data(DataConfig(source=str(source), split_by="classes", **fields))


def classes(data: Datasets) -> dict[str, set[str]]:
    return {name: {item.label for item in images.items} for name, images in data.splits.items()}


def test_the_last_half_is_the_test_and_validation_is_drawn(tmp_path: Path) -> None:
    data = opened(write_classes(tmp_path, **MANY), test_fraction=0.5, val_fraction=0.4)
    found = classes(data)
    assert found["test"] == {"05", "06", "07", "08", "09"}
    assert len(found["val"]) == 2 and len(found["train"]) == 3 and not found["val"] & found["train"]
    assert sum(len(images) for images in data.splits.values()) == 30
    assert data.manifest.split_seed == 0
    other = classes(opened(tmp_path, test_fraction=0.5, val_fraction=0.4, seed=3))
    assert other["val"] != found["val"] and other["test"] == found["test"]


def test_validation_and_training_together(tmp_path: Path) -> None:
    found = classes(opened(write_classes(tmp_path, **MANY), test_fraction=0.5, train_on_val=True))
    assert found == {"train": {"00", "01", "02", "03", "04"}, "test": {"05", "06", "07", "08", "09"}}


def test_no_image_of_a_stated_test_is_trained_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_classes(tmp_path / split, **MANY)
    data = opened(tmp_path, test_fraction=0.5, val_fraction=0.4)
    assert classes(data)["test"] == {"05", "06", "07", "08", "09"}
    assert all(item.name.startswith("test/") for item in data.test.items)
    assert all(item.name.startswith("train/") for item in (*data.train.items, *data.val.items))


def test_stated_splits_without_common_classes_stay(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", a=3, b=3, c=3, d=3, e=3, f=3)
    write_classes(tmp_path / "test", x=3, y=3)
    found = classes(opened(tmp_path, val_fraction=0.34))
    assert found["test"] == {"x", "y"} and len(found["val"]) == 2 and len(found["train"]) == 4


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two"):
        opened(write_classes(tmp_path, a=3, b=3), test_fraction=0.5, val_fraction=0)
    with pytest.raises(DataError, match="one label for each image"):
        split_by_classes(Listing(""), DataConfig(source="a"), {"a": "b"})


def test_known_classes_are_left_out_of_a_score(tmp_path: Path) -> None:
    images = open_for_evaluation(DataConfig(source=str(write_classes(tmp_path, **MANY))), None)
    with pytest.warns(DataWarning, match="15 images are of classes"):
        left = without_classes(images, ["00", "01", "02", "03", "04"], "photos")
    assert {item.label for item in left.items} == {"05", "06", "07", "08", "09"}
    with pytest.raises(DataError, match="split-by images"):
        without_classes(images, list(MANY), "photos")


def test_a_configuration_without_it_is_written_as_before(tmp_path: Path) -> None:
    assert "split_by" not in DataConfig(source="a").model_dump()
