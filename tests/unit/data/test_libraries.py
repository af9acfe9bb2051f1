"""Data sets of torchvision and Hugging Face, small ones written here in the layouts that the libraries read."""

from __future__ import annotations

import struct
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tests.unit.data.pictures import pixels, write
from torchvision.datasets import FakeData

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.problems import DataError, DataWarning
from vpeft.errors import MissingExtra


def _open(source: object, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), **fields))


def _sizes(data: Datasets) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


# --- torchvision -----------------------------------------------------------------------------------------------------


def _mnist(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The four files of MNIST with 30 + 10 images."""
    rng = np.random.default_rng(0)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("t10k", 10), ("train", 30)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return images, labels


def test_torchvision_with_train_and_test(tmp_path: Path) -> None:
    images, labels = _mnist(tmp_path)
    data = _open("torchvision:MNIST", root=tmp_path, val_fraction=1 / 3)
    assert data.labels[3] == "3 - three"
    assert _sizes(data) == {"train": 20, "val": 10, "test": 10}
    item = data.train.items[7]
    number = int(item.name.removeprefix("train/"))
    assert data.train.targets[7] == labels[number]
    assert torch.equal(data.train[7][0][1], torch.from_numpy(images[number]))
    assert data.manifest.splits["train"].content is not None


def test_torchvision_with_named_splits_and_files(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        for country in ("AD", "AE"):
            for index in range(count):
                write(tmp_path / "country211" / split / country / f"{index}.jpg", f"{split}{country}{index}")
    data = _open("torchvision:Country211", root=tmp_path)
    assert data.labels == ["AD", "AE"]
    assert _sizes(data) == {"train": 8, "val": 4, "test": 4}
    assert data.train.path(0).endswith("AD/0.jpg")


def test_torchvision_without_splits(tmp_path: Path) -> None:
    for label in ("Forest", "River"):
        for index in range(10):
            write(tmp_path / "eurosat" / "2750" / label / f"{index}.jpg", f"{label}{index}")
    data = _open("torchvision:EuroSAT", root=tmp_path)
    assert data.labels == ["Forest", "River"]
    assert _sizes(data) == {"train": 14, "val": 3, "test": 3}


def test_torchvision_train_and_test_as_splits(tmp_path: Path) -> None:
    """GTSRB has no val: the unknown value of `split` must not be taken for a fault."""
    for folder, labels in (("GTSRB/Training", range(3)),):
        for label in labels:
            for index in range(4):
                write(tmp_path / "gtsrb" / folder / f"{label:05d}" / f"{index}.ppm", f"{label}{index}")
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for index in range(6):
        write(tmp_path / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{index}.ppm", f"test{index}")
        rows.append(f"{index}.ppm;12;12;0;0;12;12;{index % 3}")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows))
    data = _open("torchvision:GTSRB", root=tmp_path, val_fraction=0.25)
    assert data.labels == ["0", "1", "2"]
    assert _sizes(data) == {"train": 9, "val": 3, "test": 6}


def test_torchvision_that_makes_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, no files, labels only by asking for each sample; and it reseeds torch, so threads would mix it up."""

    class Small(FakeData):
        def __init__(self) -> None:
            super().__init__(60, (3, 16, 16), 2)

    monkeypatch.setattr(torchvision.datasets, "FakeData", Small)
    data = _open("torchvision:FakeData")
    assert sum(_sizes(data).values()) == 60
    assert data.problems == ()
    item = data.train.items[3]
    image, label = Small()[int(item.name)]
    assert np.array_equal(np.asarray(data.train.image(3)), np.asarray(image))
    assert data.labels[data.train.targets[3]] == str(int(label))


def test_torchvision_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set 'CIFAR11'. Did you mean 'CIFAR10"):
        _open("torchvision:CIFAR11")
    with pytest.raises(DataError, match=r"is not in .*download = true"):
        _open("torchvision:CIFAR10", root=tmp_path)
    with pytest.raises(DataError, match="not a classification set"):
        _open("torchvision:CocoDetection", root=tmp_path)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object:
    """The library, cut off from the network: without, a name that does not exist is asked for again and again."""
    library = pytest.importorskip("datasets", reason='needs the extra "hf"')
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


def _png(name: str, **options: object) -> bytes:
    data = BytesIO()
    Image.fromarray(pixels(name)).save(data, "PNG", **options)
    return data.getvalue()


def _columns(hub: object, prefix: str, count: int, **extra: object) -> object:
    features = hub.Features(
        {"picture": hub.Image(), "kind": hub.ClassLabel(names=["well", "ill"]), "note": hub.Value("string")}
    )
    rows = {
        "picture": [{"bytes": _png(f"{prefix}{index}"), "path": None} for index in range(count)],
        "kind": [index % 2 for index in range(count)],
        "note": ["x"] * count,
    }
    rows.update(extra)
    return hub.Dataset.from_dict(rows, features=features)


def test_hugging_face_with_splits(hub: object, tmp_path: Path) -> None:
    splits = {"train": _columns(hub, "train", 8), "validation": _columns(hub, "val", 4), "test": _columns(hub, "t", 4)}
    hub.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    for source in (tmp_path / "set", f"hf:{tmp_path / 'set'}"):
        data = _open(source)
        assert data.manifest.layout == "hf"
        assert data.labels == ["well", "ill"]
        assert _sizes(data) == {"train": 8, "val": 4, "test": 4}
        assert data.train.targets == [0, 1] * 4
        assert torch.equal(data.train[5][0].permute(1, 2, 0), torch.from_numpy(pixels("train5")))


def test_hugging_face_without_splits(hub: object, tmp_path: Path) -> None:
    _columns(hub, "all", 20).save_to_disk(str(tmp_path / "set"))
    assert _sizes(_open(tmp_path / "set")) == {"train": 14, "val": 3, "test": 3}
    hub.DatasetDict({"train": _columns(hub, "all", 20)}).save_to_disk(str(tmp_path / "one"))
    data = _open(tmp_path / "one")  # a lone train split is all there is: a test split is made as well
    assert _sizes(data) == {"train": 14, "val": 3, "test": 3}


def test_hugging_face_images_follow_the_rules_for_odd_pictures(hub: object, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = [
        {"bytes": _png("0", exif=exif), "path": None},
        *({"bytes": _png(str(i)), "path": None} for i in range(1, 4)),
    ]
    _columns(hub, "", 4, picture=turned).save_to_disk(str(tmp_path / "set"))
    data = _open(tmp_path / "set", val_fraction=0, test_fraction=0)
    assert torch.equal(data.train[0][0].permute(1, 2, 0), torch.from_numpy(np.rot90(pixels("0"), -1).copy()))


def test_hugging_face_broken_and_unlabelled(hub: object, tmp_path: Path) -> None:
    pictures = [{"bytes": _png(str(index)), "path": None} for index in range(120)]
    pictures[3] = {"bytes": b"no", "path": None}
    kinds = [index % 2 for index in range(120)]
    kinds[7] = -1
    _columns(hub, "", 120, picture=pictures, kind=kinds, note=["x"] * 120).save_to_disk(str(tmp_path / "set"))
    with pytest.warns(DataWarning) as caught:
        data = _open(tmp_path / "set")
    assert sum(_sizes(data).values()) == 118
    said = "\n".join(str(warning.message) for warning in caught)
    assert "1 images carry no label and are skipped: 000007" in said
    assert "000003 (not an image" in said


def test_hugging_face_columns(hub: object, tmp_path: Path) -> None:
    features = hub.Features({"image": hub.Image(), "mask": hub.Image(), "species": hub.Value("string")})
    rows = {
        "image": [{"bytes": _png(str(index)), "path": None} for index in range(20)],
        "mask": [{"bytes": _png("m"), "path": None}] * 20,
        "species": [("cat", "dog")[index % 2] for index in range(20)],
    }
    hub.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(DataError, match="Several columns can be the image_column: image, mask"):
        _open(tmp_path / "set")
    with pytest.raises(DataError, match="No column can be the label_column: image, mask, species"):
        _open(tmp_path / "set", image_column="image")
    with pytest.raises(DataError, match="Did you mean 'species'"):
        _open(tmp_path / "set", image_column="image", label_column="specie")
    data = _open(tmp_path / "set", image_column="image", label_column="species")
    assert data.labels == ["cat", "dog"]


def test_hugging_face_that_is_not_there(hub: object) -> None:
    with pytest.raises(DataError, match="Hugging Face cannot give 'nobody/nothing'"):
        _open("hf:nobody/nothing")


def test_hugging_face_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r'pip install "vpeft\[hf\]"'):
        _open("hf:beans")
