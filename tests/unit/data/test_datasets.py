"""Opening a data set: what is said about broken, doubled, one-sided data, and what identifies it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.data.pictures import pixels, write, write_classes

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data, open_for_evaluation
from vpeft.data.manifest import DataManifest
from vpeft.data.preprocessing import Preprocessing
from vpeft.data.problems import DataError, DataWarning
from vpeft.settings import BadSettings


def _open(source: object, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), **fields))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """200 pictures of two classes."""
    return write_classes(tmp_path / "photos", cat=100, dog=100)


def _all_names(data: Datasets) -> list[str]:
    return [item.name for images in data.splits.values() for item in images.items]


# --- broken images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_broken_image_is_named_counted_and_skipped(photos: Path, check: str) -> None:
    (photos / "cat" / "007.png").write_bytes(b"no picture")
    with pytest.warns(DataWarning, match=r"1 files cannot be read as images; they are skipped: cat/007\.png \(not an"):
        data = _open(photos, check=check)
    assert len(_all_names(data)) == 199
    assert "cat/007.png" not in _all_names(data)
    assert [(problem.kind, problem.name) for problem in data.problems] == [("unreadable", "cat/007.png")]


def test_a_truncated_image_is_found_by_decoding_only(photos: Path) -> None:
    file = photos / "cat" / "007.png"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.warns(DataWarning, match="truncated"):
        assert len(_all_names(_open(photos))) == 199
    assert len(_all_names(_open(photos, check="header"))) == 200
    with pytest.raises(DataError, match=r"007\.png"):
        open_for_evaluation(DataConfig(source=str(photos), strict=True), ["cat", "dog"])


def test_more_than_one_percent_is_an_error(photos: Path) -> None:
    for number in (1, 2, 3):
        (photos / "cat" / f"00{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 200 images \(1\.5%\) cannot be used; the limit is 1\.0%.*\n.*cat/001"):
        _open(photos)
    with pytest.warns(DataWarning, match="3 files cannot be read"):
        assert len(_all_names(_open(photos, max_unreadable=0.02))) == 197


def test_exactly_one_percent_is_not(photos: Path) -> None:
    for number in (1, 2):
        (photos / "cat" / f"00{number}.png").write_bytes(b"")
    with pytest.warns(DataWarning, match="2 files"):
        _open(photos)


def test_strict(photos: Path) -> None:
    (photos / "cat" / "001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/001\.png.*\nMend the data, or run without strict"):
        _open(photos, strict=True)


def test_a_missing_file_of_a_list(tmp_path: Path) -> None:
    rows = [f"{index}.png,{'ab'[index % 2]}" for index in range(120)]
    for index in range(119):
        write(tmp_path / f"{index}.png")
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(rows))
    for check in ("decode", "none"):
        with pytest.warns(DataWarning, match=r"1 files are listed but do not exist; they are skipped: 119\.png"):
            data = _open(tmp_path / "l.csv", check=check)
        assert len(_all_names(data)) == 119


def test_the_split_does_not_move_because_of_a_broken_image(photos: Path) -> None:
    before = _open(photos)
    name = before.train.items[0].name
    (photos / name).write_bytes(b"")
    with pytest.warns(DataWarning):
        after = _open(photos)
    moved = {item.name for item in before.train.items} ^ {item.name for item in after.train.items}
    assert len(moved) <= 3


# --- classes ---------------------------------------------------------------------------------------------------------


def test_one_class(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=10)
    with pytest.raises(DataError, match="The data holds one class, 'cat'; at least two"):
        _open(tmp_path)


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        _open(tmp_path, layout="folder")


def test_an_empty_class(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=10, dog=10, eel=0)
    with pytest.warns(DataWarning, match="1 classes have no image and are left out of the labels: eel"):
        data = _open(tmp_path)
    assert data.labels == ["cat", "dog"]
    with pytest.raises(DataError, match="eel"):
        _open(tmp_path, strict=True)


def test_a_class_seen_only_in_test(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=10, dog=10)
    write_classes(tmp_path / "test", cat=2, dog=2, eel=2)
    with pytest.warns(DataWarning, match=r"no training image, so no model can learn them: eel \(only in test\)"):
        data = _open(tmp_path)
    assert data.labels == ["cat", "dog", "eel"]


def test_an_empty_class_of_one_split_only(tmp_path: Path) -> None:
    """train/eel is there but empty: the class is known from test, and cannot be learnt."""
    write_classes(tmp_path / "train", cat=10, dog=10, eel=0)
    write_classes(tmp_path / "test", cat=2, dog=2, eel=2)
    with pytest.warns(DataWarning, match="eel") as caught:
        _open(tmp_path)
    assert len(caught) == 1


def test_no_training_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "test", cat=2, dog=2)
    with pytest.raises(DataError, match="states test but no images to train on"):
        _open(tmp_path)


def test_too_few_images_to_hold_any_out(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=1, dog=1)
    with pytest.warns(DataWarning, match="too few images for this split"):
        data = _open(tmp_path)
    assert data.val is None
    assert data.test is None
    assert len(data.train) == 2


def test_no_held_out_splits_if_none_are_wanted(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=5, dog=5)
    data = _open(tmp_path, val_fraction=0, test_fraction=0)
    assert (len(data.train), data.val, data.test, data.problems) == (10, None, None, ())


# --- copies ----------------------------------------------------------------------------------------------------------


def test_copies_across_stated_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_classes(tmp_path / split, cat=4, dog=4)
    write(tmp_path / "test" / "cat" / "copy.png", "train/cat/1")
    pattern = (
        r"1 images are in more than one split.*train/cat/001\.png in train \(the same as test/cat/copy\.png in test"
    )
    with pytest.warns(DataWarning, match=pattern):
        _open(tmp_path)
    with pytest.raises(DataError, match=r"copy\.png"):
        _open(tmp_path, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _open(tmp_path, check="none")  # as documented: without reading, copies are not seen


def test_copies_stay_on_one_side_of_splits_made_here(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=0, dog=0)
    for index in range(40):
        for copy in "ab":
            write(tmp_path / "cat" / f"{index}{copy}.png", f"cat{index}")
            write(tmp_path / "dog" / f"{index}{copy}.png", f"dog{index}")
    data = _open(tmp_path)
    sides = [{item.name[:-5] for item in images.items} for images in data.splits.values()]
    assert len(sides) == 3
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]


def test_one_picture_under_two_labels(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=20, dog=20)
    write(tmp_path / "dog" / "twin.png", f"{tmp_path.name}/cat/3")
    with pytest.warns(DataWarning, match=r"1 images appear under more than one label: .*cat.*dog|dog.*cat") as caught:
        _open(tmp_path)
    assert len(caught) == 1


def test_copies_in_arrays(tmp_path: Path) -> None:
    images = np.stack([pixels(str(index)) for index in range(12)])
    test = np.stack([pixels("3"), pixels("other")])
    labels = np.arange(12) % 2
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=test, test_labels=[1, 0])
    with pytest.warns(DataWarning, match=r"train_images\[3\] in .*test_images\[0\] in test"):
        _open(tmp_path / "a.npz")


# --- what identifies a data set --------------------------------------------------------------------------------------


def test_opening_twice_gives_the_same(photos: Path) -> None:
    first, second = _open(photos), _open(photos)
    assert first.manifest == second.manifest
    for one, two in zip(first.splits.values(), second.splits.values(), strict=True):
        assert one.targets == two.targets
        assert all(torch.equal(one[index][0], two[index][0]) for index in range(len(one)))


def test_digest_is_of_the_data_and_not_of_its_place(tmp_path: Path) -> None:
    data = _open(write_classes(tmp_path / "one" / "photos", cat=10, dog=10))
    moved = _open(write_classes(tmp_path / "two" / "photos", cat=10, dog=10))
    assert data.manifest.digest == moved.manifest.digest
    assert _open(tmp_path / "one" / "photos", seed=1).manifest.digest != data.manifest.digest
    one, two = (tmp_path / "two" / "photos" / name for name in ("cat/000.png", "dog/000.png"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    swapped = _open(tmp_path / "two" / "photos")  # the same names and the same contents, but not together
    assert swapped.manifest.digest != data.manifest.digest
    assert swapped.manifest.splits["train"].sha256 == data.manifest.splits["train"].sha256


def test_manifest_says_what_is_there(photos: Path) -> None:
    manifest = _open(photos).manifest
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 140, "val": 30, "test": 30}
    assert manifest.splits["val"].per_label == {"cat": 15, "dog": 15}
    assert DataManifest.model_validate(json.loads(manifest.model_dump_json())) == manifest
    assert _open(photos, check="none").manifest.splits["val"].content is None


def test_the_table_gives_the_same_splits_again(photos: Path, tmp_path: Path) -> None:
    data = _open(photos)
    (tmp_path / "data.csv").write_text(data.table())
    again = _open(tmp_path / "data.csv", root=photos)
    assert again.manifest.digest == data.manifest.digest
    assert again.manifest.split_seed is None


# --- fields ----------------------------------------------------------------------------------------------------------


def test_per_class_limits_training_alone(photos: Path) -> None:
    data, whole = _open(photos, per_class=3), _open(photos)
    assert data.train.counts() == {"cat": 3, "dog": 3}
    assert data.val is not None
    assert whole.val is not None
    assert [item.name for item in data.val.items] == [item.name for item in whole.val.items]


def test_train_on_val(photos: Path) -> None:
    data, apart = _open(photos, train_on_val=True), _open(photos)
    assert data.val is None
    assert apart.val is not None
    assert {item.name for item in data.train.items} == {item.name for item in [*apart.train.items, *apart.val.items]}
    assert data.test is not None
    assert apart.test is not None
    assert data.test.targets == apart.test.targets


def test_prepared(photos: Path) -> None:
    preprocessing = Preprocessing(size=(64, 64))
    data = _open(photos, augmentation="crop", image_size=32).prepared(preprocessing)
    assert data.val is not None
    image, _ = data.train[0]
    assert image.shape == (3, 32, 32)
    plain = preprocessing.resized(32).transform()
    assert torch.equal(data.val[2][0], plain(data.val.image(2)))
    assert not torch.equal(image, plain(data.train.image(0)))
    assert data.train.transform is not _open(photos).train.transform


def test_memory_is_filled_when_opened(photos: Path) -> None:
    plain, kept = _open(photos), _open(photos, cache="ram")
    for file in photos.rglob("*.png"):
        file.unlink()
    assert kept.test is not None
    for images in kept.splits.values():
        assert all(images[index][0].shape == (3, 12, 12) for index in range(len(images)))
    with pytest.raises(DataError, match="No such file"):
        plain.train[0]


def test_fractions() -> None:
    with pytest.raises(BadSettings, match="leave nothing to train on"):
        DataConfig(source="x", val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(BadSettings, match="has no option"):
        DataConfig(source="x", augmentations="flip")


def test_every_field_is_described() -> None:
    assert all(field.description for field in DataConfig.model_fields.values())


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_takes_test_then_val_then_everything(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 4), ("test", 2)):
        write_classes(tmp_path / "all" / split, cat=count, dog=count)
    labels = ["dog", "cat"]
    assert len(open_for_evaluation(DataConfig(source=str(tmp_path / "all")), labels)) == 4
    (tmp_path / "all" / "test").rename(tmp_path / "test")
    assert len(open_for_evaluation(DataConfig(source=str(tmp_path / "all")), labels)) == 8
    images = open_for_evaluation(DataConfig(source=str(tmp_path / "test")), labels)
    assert images.targets == [1, 1, 0, 0]
    assert images.labels == labels


def test_evaluation_may_have_fewer_labels_but_no_new_ones(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=3)
    assert open_for_evaluation(DataConfig(source=str(tmp_path)), ["ant", "cat"]).targets == [1, 1, 1]
    with pytest.raises(DataError, match="'cat' are in the data but not among"):
        open_for_evaluation(DataConfig(source=str(tmp_path)), ["ant", "dog"])
