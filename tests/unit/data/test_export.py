"""A data set written as a folder is the same data set when it is read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.data.pictures import pixels, write_classes

from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data
from vpeft.data.export import export_folder, folder_names
from vpeft.data.manifest import DataManifest
from vpeft.data.problems import DataError


def test_arrays_come_back_pixel_by_pixel(tmp_path: Path) -> None:
    images = np.stack([pixels(str(index)) for index in range(40)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["a/b", ".c"] * 20))
    data = open_data(DataConfig(source=str(tmp_path / "a.npz")))
    out = export_folder(data, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["data.json", "test", "train", "val"]
    again = open_data(DataConfig(source=str(out)))
    assert again.labels == ["a_b", "c"]
    assert data.labels == [".c", "a/b"]
    for name, split in data.splits.items():
        expected = {split[index][0].numpy().tobytes(): data.labels[split[index][1]] for index in range(len(split))}
        other = again.splits[name]
        seen = {other[index][0].numpy().tobytes(): again.labels[other[index][1]] for index in range(len(other))}
        assert {pixels: {"a/b": "a_b", ".c": "c"}[label] for pixels, label in expected.items()} == seen
    assert DataManifest.model_validate_json((out / "data.json").read_text()) == data.manifest


def test_files_are_copied_as_they_are(tmp_path: Path) -> None:
    data = open_data(DataConfig(source=str(write_classes(tmp_path / "in", cat=10, dog=10))))
    out = export_folder(data, tmp_path / "out")
    expected = sorted(path.read_bytes() for path in (tmp_path / "in").rglob("*.png"))
    assert sorted(path.read_bytes() for path in out.rglob("*.png")) == expected
    again = open_data(DataConfig(source=str(out)))
    assert torch.equal(again.train[0][0], data.train[0][0])


def test_a_split_without_one_of_the_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "in" / "train", cat=6, dog=6)
    write_classes(tmp_path / "in" / "val", cat=2)
    out = export_folder(open_data(DataConfig(source=str(tmp_path / "in"))), tmp_path / "out")
    assert [path.name for path in (out / "val").iterdir()] == ["cat"]


def test_an_occupied_folder_is_refused(tmp_path: Path) -> None:
    data = open_data(DataConfig(source=str(write_classes(tmp_path / "in", cat=10, dog=10))))
    (tmp_path / "out").mkdir()
    export_folder(data, tmp_path / "out")  # empty is fine
    with pytest.raises(DataError, match="not an empty folder"):
        export_folder(data, tmp_path / "out")


def test_nothing_is_left_of_a_failed_export(tmp_path: Path) -> None:
    data = open_data(DataConfig(source=str(write_classes(tmp_path / "in", cat=10, dog=10))))
    (tmp_path / "in" / "dog" / "003.png").unlink()
    with pytest.raises(FileNotFoundError):
        export_folder(data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_folder_names() -> None:
    labels = ["a/b", "a:b", "A_b", "..", "", "x\ny", "é", "__pycache__", "a."]
    names = folder_names(labels)
    assert len({name.casefold() for name in names.values()}) == len(labels)
    assert all(name and not name.startswith(".") and not set("/\\:\n") & set(name) for name in names.values())
    assert names["__pycache__"] != "__pycache__"  # such a folder is not read as a class
    assert names["é"] == "é"


def test_other_targets_come_back(tmp_path: Path) -> None:
    from vpeft.data import ArraySet, DataConfig, open_data

    images = np.stack([pixels(str(index)) for index in range(20)])
    rng = np.random.default_rng(0)
    targets = {
        "labels": rng.integers(0, 2, (20, 3)),
        "values": rng.random((20, 2)),
        "mask": rng.integers(0, 3, (20, 12, 12)),
    }
    for kind, y in targets.items():
        np.savez(tmp_path / f"{kind}.npz", images=images, labels=y)
        data = open_data(DataConfig(source=str(tmp_path / f"{kind}.npz"), target=kind))
        out = export_folder(data, tmp_path / kind)
        source = out if kind == "mask" else out / "list.csv"
        columns = tuple(data.labels) if kind == "values" else ()
        again = open_data(DataConfig(source=str(source), target=kind, label_columns=columns))
        assert again.labels == data.labels
        for name, split in data.splits.items():
            other = again.splits[name]
            assert len(other) == len(split)
            for one, two in zip(split, other, strict=True):
                assert one.input.equal(two.input)
                assert one.target.equal(two.target)
    assert len(ArraySet(images, targets["mask"], target="mask").labels) == 3
