"""An evaluation leaves out the images of the training, wherever they lie by then."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from vpeft.data.config import DataConfig
from vpeft.data.datasets import open_data, open_for_evaluation
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.used_images import MOST, Marks, UsedImages


def _photos(folder: Path, count: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (8, 8, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def _evaluated(source: Path, used: UsedImages | None, **more: object) -> list[str]:
    return [item.name for item in open_for_evaluation(DataConfig(source=str(source), **more), None, used).items]


def test_the_part_that_was_held_out_is_scored(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    data = open_data(DataConfig(source=str(photos)))
    assert data.test is not None and data.used is not None
    held = sorted(item.name for item in data.test.items)
    with pytest.warns(DataWarning, match=f"{40 - len(held)} of the 40 images were used"):
        assert sorted(_evaluated(photos, data.used)) == held
    assert len(_evaluated(photos, None)) == 40
    moved = tmp_path / "elsewhere"
    shutil.move(photos, moved)
    for number, file in enumerate(sorted(moved.rglob("*.png"))):
        file.rename(file.with_name(f"renamed {number}.png"))
    with pytest.warns(DataWarning, match="are left out"):
        assert len(_evaluated(moved, data.used)) == len(held)


def test_a_list_of_the_same_files(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    data = open_data(DataConfig(source=str(photos)))
    assert data.test is not None
    rows = [f"photos/{file.relative_to(photos)},{file.parent.name}" for file in sorted(photos.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(rows))
    with pytest.warns(DataWarning, match="are left out"):
        seen = _evaluated(tmp_path / "list.csv", data.used)
    assert sorted(name.removeprefix("photos/") for name in seen) == sorted(item.name for item in data.test.items)


def test_another_fold_of_a_cross_validation(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    files = sorted(photos.rglob("*.png"))
    for fold in range(2):
        rows = [f"{file},{file.parent.name},{'val' if n % 2 == fold else 'train'}" for n, file in enumerate(files)]
        (tmp_path / f"fold{fold}.csv").write_text("path,label,split\n" + "\n".join(rows))
    used = open_data(DataConfig(source=str(tmp_path / "fold0.csv"))).used
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(_evaluated(tmp_path / "fold0.csv", used)) == 20
    with pytest.warns(DataWarning, match="All 20 images were used in training"):
        assert len(_evaluated(tmp_path / "fold1.csv", used)) == 20
    with pytest.warns(DataWarning, match="20 of the 40 images were trained on.*the other 20 chose"):
        assert len(_evaluated(photos, used)) == 20


def test_a_folder_without_a_test_split_and_new_images(tmp_path: Path) -> None:
    photos, other = _photos(tmp_path / "photos"), tmp_path / "other"
    used = open_data(DataConfig(source=str(photos), val_fraction=0, test_fraction=0)).used
    with pytest.warns(DataWarning, match="All 40 images were used"):
        assert len(_evaluated(photos, used)) == 40
    (other / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(other / "a" / "0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _evaluated(other, used) == ["a/0.png"]


def test_marks_of_a_large_set_tell_the_share() -> None:
    contents = [f"{number:064x}"[::-1] for number in range(3 * MOST)]
    marks = Marks.of(contents)
    assert marks.count == 3 * MOST and marks.every == 3 and len(marks.text) < 60_000
    assert 0.2 < np.mean([marks.has(content) for content in contents]) < 0.5
    assert Marks.of(["ab" * 32, ""]).has("ab" * 32) and not Marks.of(["ab" * 32]).has("ac" * 32)
    for text in ("not base64!", "AAA="):
        with pytest.raises(ValidationError):
            Marks(count=1, text=text)


def test_the_named_split_of_a_training_is_found_again(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    data = open_data(DataConfig(source=str(photos)))
    assert data.val is not None and data.test is not None and data.used is not None
    for split, images in data.splits.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            found = open_for_evaluation(DataConfig(source=str(photos)), None, data.used, split)
        assert sorted(item.name for item in found.items) == sorted(item.name for item in images.items)
    with pytest.raises(DataError, match="has no split val: it states no splits"):
        open_for_evaluation(DataConfig(source=str(photos)), None, None, "val")


def test_a_named_split_of_other_images_is_the_one_that_they_state(tmp_path: Path) -> None:
    used = open_data(DataConfig(source=str(_photos(tmp_path / "photos")))).used
    assert used is not None
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        (tmp_path / "other" / split / "a").mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype("uint8")).save(
            tmp_path / "other" / split / "a" / "0.png"
        )
    other = DataConfig(source=str(tmp_path / "other"))
    assert [item.name for item in open_for_evaluation(other, None, used, "train").items] == ["train/a/0.png"]
    assert [item.name for item in open_for_evaluation(other, None, used, "test").items] == ["test/a/0.png"]
    with pytest.raises(DataError, match="has no split val: it states train and test"):
        open_for_evaluation(other, None, used, "val")


def test_classes_of_validation_are_kept_where_splits_have_classes_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in "abcdefgh":
        (tmp_path / label).mkdir()
        Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype("uint8")).save(tmp_path / label / "0.png")
    data = open_data(DataConfig(source=str(tmp_path), split_by="classes", val_fraction=0.3, test_fraction=0.25))
    assert data.val is not None and data.used is not None
    assert set(data.used.val_classes) == {item.label for item in data.val.items}
    assert UsedImages.model_validate(data.used.model_dump(mode="json")) == data.used
    assert set(data.used.joined(data.used).val_classes) == set(data.used.val_classes)
    assert "val_classes" not in UsedImages(train=Marks.of(["ab" * 32])).model_dump()
