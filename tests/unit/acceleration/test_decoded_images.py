"""Kept pixels: the same tensors as from the files, when they are refused, and what is on the disk."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vpeft
from tests.models import tiny_vit
from tests.unit.data.pictures import pixels
from tests.unit.training.material import Patches
from vpeft.acceleration.apply import accelerate
from vpeft.acceleration.prefix_cache import Situation
from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.image_set import ArraySet, ImageSet
from vpeft.data.preprocessing import Preprocessing
from vpeft.methods import LoRA
from vpeft.training.batches import Batches
from vpeft.training.fit import fit
from vpeft.training.optimisation import Optimisation

SIZE = Preprocessing(size=(32, 32))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine JPEG files of two classes and of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(9):
        file = root / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        picture = Image.fromarray(pixels(file.name, 48)).resize((40 + number, 50 - 2 * number))
        picture.save(file, quality=90)
    return root


def opened(photos: Path, **fields: Any) -> Datasets:
    config = DataConfig(source=str(photos), val_fraction=0.34, test_fraction=0.0, **fields)
    return open_data(config).prepared(SIZE)


def situation(data: Datasets, **changes: Any) -> Situation:
    return replace(Situation(data.train, data.val, 3, 4, nullcontext), **changes)


def kept(given: Situation, choice: str = "decoded_images") -> tuple[ImageSet | None, ImageSet | None, str]:
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=1), num_classes=2, show=False, verify=False).train()
    made = accelerate(tuned, choice, situation=given)
    return made.train, made.val, made.lines()[0]


@pytest.mark.parametrize("policy", ["none", "flip"])
def test_the_tensors_are_those_of_the_files_in_every_epoch(photos: Path, policy: str) -> None:
    data = opened(photos, augmentation=policy)
    train, val, line = kept(situation(data))
    assert train is not None and val is not None and data.val is not None
    assert line == (
        "+ decoded_images: 9 images decoded and resized once, 0.0 MiB kept in memory, the same bits on a sample"
    )
    for plain, other in ((data.train, train), (data.val, val)):
        for epoch in (0, 5):
            plain.set_epoch(epoch)
            other.set_epoch(epoch)
            assert all(torch.equal(plain[i][0], other[i][0]) for i in range(len(plain)))
        assert [plain[i][1] for i in range(len(plain))] == [other[i][1] for i in range(len(plain))]
        assert other.labels == plain.labels and other.path(0) == plain.path(0)
    # another transform, or a part of the images, starts from the files again
    assert torch.equal(train.with_transform(None)[1][0], data.train.with_transform(None)[1][0])
    assert torch.equal(train.subset([2])[0][0], data.train.subset([2])[0][0])


def test_batches_of_loading_processes_are_the_same(photos: Path, tmp_path: Path) -> None:
    data = opened(photos, augmentation="flip")
    train, _, _ = kept(situation(data, folder=tmp_path))
    assert train is not None
    plain = [images for images, _ in Batches(data.train, 4, seed=1).epoch(1)]
    other = [images for images, _ in Batches(train, 4, seed=1, workers=1).epoch(1)]
    assert all(torch.equal(one, two) for one, two in zip(plain, other, strict=True))


def test_a_run_ends_with_the_same_bits_and_says_so(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, ends = opened(photos, augmentation="flip"), list[dict[str, Tensor]]()
    for choice in ("off", "decoded_images"):
        torch.manual_seed(0)
        tuned = vpeft.tune(tiny_vit(), LoRA(rank=1), num_classes=2, show=False, verify=False)
        settings = Optimisation(epochs=2, batch=3, acceleration=choice)
        fit(tuned, data.train, data.val, optimisation=settings)
        ends.append({name: tensor.clone() for name, tensor in tuned.adapter_state().items()})
    assert "+ decoded_images: 9 images decoded and resized once" in capsys.readouterr().err
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_it_is_refused_with_the_reason(photos: Path) -> None:
    data = opened(photos)
    arrays = ArraySet(np.zeros((4, 9, 9, 3), np.uint8), [0, 1, 0, 1], transform=SIZE.transform())
    for changes, reason in (
        ({"epochs": 1}, "in a single epoch no image is read twice"),
        ({"train": Patches(12)}, "only vpeft's own image sets state"),
        ({"train": arrays}, "the images are in memory already"),
        ({"train": opened(photos, cache="ram").train}, "kept in memory already (data.cache)"),
        ({"train": opened(photos, augmentation="crop").train}, "RandomCropResized acts on images of different sizes"),
        ({"train": opened(photos, augmentation="simple").train}, "RandomCrop acts on images of different sizes"),
        ({"gib": 1e-6}, "raise prefix_gib, or give prefix_folder"),
    ):
        train, _, line = kept(replace(situation(data), **changes))  # type: ignore[arg-type]
        assert train is None and line.startswith("- decoded_images: ") and reason in line, line


def test_pixels_on_disk_are_found_again_unless_anything_differs(photos: Path, tmp_path: Path) -> None:
    given = situation(opened(photos), val=None, folder=tmp_path)
    first, _, line = kept(given)
    assert first is not None and f"kept in {tmp_path}" in line
    assert f"found in {tmp_path}" in kept(given)[2]
    (folder,) = tmp_path.iterdir()
    # another size, and a file that was written anew: rows of their own
    other = open_data(DataConfig(source=str(photos), val_fraction=0.34, test_fraction=0.0))
    assert "kept in" in kept(replace(given, train=other.prepared(Preprocessing(size=(24, 24))).train))[2]
    touched = given.train.items[0].picture.file  # type: ignore[attr-defined]
    os.utime(touched, (1, 1))
    with pytest.raises(vpeft.VpeftError, match="changed"):
        kept(given)
    given = situation(opened(photos), val=None, folder=tmp_path)
    assert "kept in" in kept(given)[2]
    assert len(list(tmp_path.iterdir())) == 3
    # a folder that is not complete is made again, and so is one with other pixels
    again = situation(opened(photos), val=None, folder=tmp_path / "second")
    kept(again)
    (folder,) = (tmp_path / "second").iterdir()
    (folder / "store.json").unlink()
    assert "kept in" in kept(again)[2]
    (folder,) = (tmp_path / "second").iterdir()
    (folder / "0.bin").write_bytes(bytes((folder / "0.bin").stat().st_size))
    train, _, line = kept(again)
    assert train is not None and "kept in" in line  # the digest of the rows differs, so they are made anew


def test_a_file_that_breaks_while_it_is_read_leaves_nothing_behind(photos: Path, tmp_path: Path) -> None:
    data = opened(photos)
    broken = data.train.subset([0, 1, 2])
    file = broken.items[2].picture.file
    assert file is not None
    content = file.read_bytes()
    try:
        file.write_bytes(b"no picture")
        with pytest.raises(vpeft.VpeftError, match="It was there when the data set was opened"):
            kept(situation(data, train=broken, val=None, folder=tmp_path))
    finally:
        file.write_bytes(content)
    assert not list(tmp_path.iterdir())


def test_records_of_the_frozen_part_stand_for_the_images(photos: Path) -> None:
    data = opened(photos)
    tuned = vpeft.tune(tiny_vit(), vpeft.methods.LinearProbe(), num_classes=2, show=False, verify=False).train()
    made = accelerate(tuned, "frozen_prefix,decoded_images", situation=situation(data))
    assert made.prefix is not None and made.train is None
    assert made.lines()[1] == "- decoded_images: the images are not read, because the frozen part is cached"
    made.close()
