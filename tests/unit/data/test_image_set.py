"""Access to images: the same tensors every time, in any order, with any number of workers."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vpeft.data.image_set import ArraySet, DecodedImages, ImageSet, _mix
from vpeft.data.items import FilePicture, Item
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError

PREPROCESSING = Preprocessing(size=(16, 16))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), np.uint8)


@pytest.fixture
def arrays(images: np.ndarray) -> ArraySet:
    return ArraySet(images, [0, 1, 2] * 4, ["x", "y", "z"])


def test_without_transform_the_very_pixels(images: np.ndarray, arrays: ArraySet) -> None:
    image, target = arrays[4]
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(images[4]).permute(2, 0, 1))
    assert target == 1
    assert torch.equal(arrays[-1][0], arrays[11][0])
    with pytest.raises(IndexError):
        arrays[12]


def test_targets_counts_and_paths(arrays: ArraySet) -> None:
    assert arrays.targets == [0, 1, 2] * 4
    assert arrays.counts() == {"x": 4, "y": 4, "z": 4}
    assert arrays.path(3) == "images[3]"
    assert len(arrays) == 12


def test_grey_arrays() -> None:
    grey = ArraySet(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), [0, 1])
    assert grey[1][0].tolist() == [[[4, 5], [6, 7]]] * 3
    assert grey.labels == ["0", "1"]


@pytest.mark.parametrize(
    ("shape", "targets", "labels", "message"),
    [
        ((2, 4, 4, 3), [0], None, "2 images but 1 labels"),
        ((2, 4), [0, 1], None, "shape"),
        ((2, 3, 5, 5), [0, 1], None, "shape"),
        ((2, 4, 4, 3), [0, 2], ["a", "b"], "Label 2"),
        ((2, 4, 4, 3), [0, -1], None, "Label -1"),
    ],
)
def test_arrays_that_do_not_fit(shape: tuple[int, ...], targets: list[int], labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySet(np.zeros(shape, np.uint8), targets, labels)


def test_unknown_label_is_refused() -> None:
    item = Item("a", "cat", FilePicture(Path("a.png")))
    with pytest.raises(DataError, match=r"'cat' are in the data but not among the 2 known ones \('dog', 'eel'\)"):
        ImageSet([item], ["dog", "eel"])


def test_augmented_access_is_a_function_of_seed_epoch_and_index(arrays: ArraySet) -> None:
    train = arrays.with_transform(PREPROCESSING.augmented("randaugment"))
    first = [train[index][0] for index in range(12)]
    assert all(torch.equal(train[index][0], first[index]) for index in reversed(range(12)))
    train.set_epoch(1)
    second = [train[index][0] for index in range(12)]
    assert not any(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    train.set_epoch(0)
    assert all(torch.equal(train[index][0], first[index]) for index in range(12))
    other = ArraySet(np.stack([np.asarray(arrays.image(i)) for i in range(12)]), arrays.targets, seed=1)
    other = other.with_transform(PREPROCESSING.augmented("randaugment"))
    assert not all(torch.equal(other[index][0], first[index]) for index in range(12))


def test_equal_images_are_augmented_differently() -> None:
    same = ArraySet(np.repeat(np.random.default_rng(0).integers(0, 256, (1, 20, 20, 3), np.uint8), 6, 0), [0, 1] * 3)
    train = same.with_transform(PREPROCESSING.augmented("crop"))
    assert len({train[index][0].sum().item() for index in range(6)}) > 3


def test_access_leaves_the_generators_alone(arrays: ArraySet) -> None:
    train = arrays.with_transform(PREPROCESSING.augmented("randaugment"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train[0]
    assert torch.equal(torch.rand(3), expected)


def test_a_failing_transform_leaves_the_generator_alone(arrays: ArraySet) -> None:
    def fail(image: Image.Image) -> torch.Tensor:
        torch.rand(2)
        raise RuntimeError("no")

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match="no"):
        arrays.with_transform(fail)[0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_the_same_and_follow_the_epoch(arrays: ArraySet, workers: int) -> None:
    train = arrays.with_transform(PREPROCESSING.augmented("crop"))
    loader = DataLoader(train, batch_size=5, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 1, 0):
        train.set_epoch(epoch)
        seen = torch.cat([images for images, _ in loader])
        assert torch.equal(seen, torch.stack([train[index][0] for index in range(12)]))


def test_with_transform_does_not_touch_the_original(arrays: ArraySet) -> None:
    train = arrays.with_transform(PREPROCESSING.augmented("crop"))
    train.set_epoch(7)
    assert arrays.transform is None
    twin = train.with_transform(train.transform)
    assert not torch.equal(twin[0][0], train[0][0])  # a new set starts at epoch 0
    assert isinstance(twin, ArraySet)


def test_pickle(arrays: ArraySet) -> None:
    train = arrays.with_transform(PREPROCESSING.augmented("crop"))
    again = pickle.loads(pickle.dumps(train))
    assert torch.equal(again[3][0], train[3][0])


def test_subset(arrays: ArraySet) -> None:
    part = arrays.subset([5, 1])
    assert part.targets == [2, 1]
    assert torch.equal(part[1][0], arrays[1][0])
    assert part.labels == ["x", "y", "z"]


def test_seeds_do_not_collide() -> None:
    seeds = {_mix(seed, epoch, index) for seed in range(10) for epoch in range(20) for index in range(50)}
    assert len(seeds) == 10 * 20 * 50
    assert _mix(0, 0, 1) != _mix(0, 1, 0) != _mix(1, 0, 0)


def _files(folder: Path, count: int) -> list[Item]:
    rng = np.random.default_rng(0)
    items = []
    for index in range(count):
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(file)
        items.append(Item(file.name, "ab"[index % 2], FilePicture(file)))
    return items


def test_memory_gives_the_same_and_reads_once(tmp_path: Path) -> None:
    items = _files(tmp_path, 4)
    plain, cached = ImageSet(items, ["a", "b"]), ImageSet(items, ["a", "b"], cache=DecodedImages(10**6))
    first = [plain[index][0] for index in range(4)]
    assert all(torch.equal(cached[index][0], first[index]) for index in range(4))
    for item in items:
        item.where and Path(item.where).unlink()
    assert all(torch.equal(cached[index][0], first[index]) for index in range(4))
    assert all(torch.equal(cached.subset([3])[0][0], first[3]) for _ in range(2))


def test_memory_has_a_limit(tmp_path: Path) -> None:
    cache = DecodedImages(2 * 300)
    images = ImageSet(_files(tmp_path, 4), ["a", "b"], cache=cache)
    for _ in range(2):
        for index in range(4):
            images[index]
    assert len(cache) == 2
    assert cache.used == 600


def test_changing_a_kept_image_does_not_change_the_next(tmp_path: Path) -> None:
    images = ImageSet(_files(tmp_path, 1), ["a"], cache=DecodedImages(10**6))
    first = images[0][0].clone()
    images[0][0].zero_()
    images.image(0).paste((0, 0, 0), (0, 0, 10, 10))
    assert torch.equal(images[0][0], first)


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    images = ImageSet(_files(tmp_path, 2), ["a", "b"])
    (tmp_path / "1.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"1\.png: not an image.*was there when"):
        images[1]
