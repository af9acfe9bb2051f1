"""Files of MedMNIST: six arrays, whose file name says what the classes are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.problems import DataError
from vpeft.data.sources.medmnist import CLASSES
from vpeft.data.sources.registry import find_source

COUNTS = {"train": 24, "val": 8, "test": 12}


def written(path: Path, labels: NDArray[Any] | int, *shape: int, dtype: str = "uint8") -> dict[str, NDArray[Any]]:
    """A file as the authors lay it out: labels (N, 1) of so many classes, or rows of those that are given."""
    drawn = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for split, count in COUNTS.items():
        top = np.iinfo(dtype).max
        arrays[f"{split}_images"] = drawn.integers(0, top, (count, *shape), dtype=dtype)
        if isinstance(labels, int):
            arrays[f"{split}_labels"] = (np.arange(count) % labels)[:, None].astype(np.uint8)
        else:
            arrays[f"{split}_labels"] = labels[np.arange(count) % len(labels)]
    np.savez(path, **arrays)
    return arrays


def opened(path: Path, **fields: Any) -> Datasets:
    return open_data(DataConfig(source=str(path), **fields))


def test_a_set_of_colour_is_read_with_its_splits_and_names(tmp_path: Path) -> None:
    arrays = written(tmp_path / "bloodmnist.npz", 8, 28, 28, 3)
    data = opened(tmp_path / "bloodmnist.npz")
    assert find_source(DataConfig(source=str(tmp_path / "bloodmnist.npz"))).name == "medmnist"
    assert {split: len(images) for split, images in data.splits.items()} == COUNTS
    assert data.labels[:2] == ["basophil", "eosinophil"] and len(data.labels) == 8
    image, target = data.train[3]
    assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(arrays["train_images"][3])) and target == 3


def test_a_grey_set_of_a_larger_size_is_the_same_set(tmp_path: Path) -> None:
    written(tmp_path / "pneumoniamnist_64.npz", 2, 64, 64)
    data = opened(tmp_path / "pneumoniamnist_64.npz", channels=1)
    assert data.labels == ["normal", "pneumonia"] and data.train[0][0].shape == (1, 64, 64)


def test_several_labels_of_an_image(tmp_path: Path) -> None:
    rows = np.eye(14, dtype=np.uint8)
    rows[0, 13] = 1
    written(tmp_path / "chestmnist.npz", rows, 28, 28)
    data = opened(tmp_path / "chestmnist.npz", target="labels")
    assert data.labels == list(CLASSES["chestmnist"])
    assert data.train[0][1].tolist() == [1.0, *[0.0] * 12, 1.0]
    with pytest.raises(DataError, match="--task multilabel"):
        opened(tmp_path / "chestmnist.npz")


def test_grades_are_classes_or_numbers(tmp_path: Path) -> None:
    written(tmp_path / "retinamnist.npz", 5, 28, 28, 3)
    assert opened(tmp_path / "retinamnist.npz").labels == ["0", "1", "2", "3", "4"]
    assert opened(tmp_path / "retinamnist.npz", target="values").train[7][1].tolist() == [2.0]


def test_another_file_of_the_layout_keeps_sixteen_bits(tmp_path: Path) -> None:
    arrays = written(tmp_path / "ours.npz", 3, 32, 32, dtype="uint16")
    data = opened(tmp_path / "ours.npz", layout="medmnist", channels=1, window=(0, 65535))
    assert data.labels == ["0", "1", "2"]
    assert torch.allclose(data.test[4][0][0].double(), torch.from_numpy(arrays["test_images"][4] / 65535), atol=1e-6)
    assert find_source(DataConfig(source=str(tmp_path / "ours.npz"))).name == "numpy"


def test_what_is_no_set_of_images_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "organmnist3d.npz", 11, 28, 28, 28)
    with pytest.raises(DataError, match="holds volumes"):
        opened(tmp_path / "organmnist3d.npz", layout="medmnist")
    np.savez(tmp_path / "pathmnist.npz", train_images=np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(DataError, match="it has no train_labels, val_images"):
        opened(tmp_path / "pathmnist.npz", layout="medmnist")
    (tmp_path / "dermamnist.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="dermamnist"):
        opened(tmp_path / "dermamnist.npz")
