"""The kinds of targets: found by their files, open to others, and told apart in sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.data.test_coco import HEIGHT, WIDTH, write

from vpeft.cli import main
from vpeft.data import ArraySet, DataConfig, Preprocessing, open_data, open_for_evaluation, targets
from vpeft.data.image_set import matched
from vpeft.data.objects import Objects, Polygons
from vpeft.data.problems import DataError
from vpeft.data.sources.registry import with_its_target
from vpeft.data.target import _KINDS, UnknownTarget, register_target, target_kinds, target_of
from vpeft.data.targets.label import Label
from vpeft.tasks.targets import plural_of


def test_every_file_is_a_kind_of_its_name() -> None:
    files = {file.stem for file in Path(targets.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(target_kinds()) == files >= {"label", "labels", "values", "mask", "objects", "depth"}
    for name, kind in target_kinds().items():
        assert kind.name == name
        assert kind.given and kind.plural and kind.wants and kind.task


def test_an_unknown_kind_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnknownTarget, match="no kind of target 'msk'. Did you mean 'mask'"):
        target_of("msk")
    Image.new("RGB", (4, 4)).save((tmp_path / "a").with_suffix(".png"))
    with pytest.raises(UnknownTarget, match="no kind of target 'msk'"):
        open_data(DataConfig(source="digits", target="msk"))


def test_a_kind_from_elsewhere_is_found_and_learns_its_words() -> None:
    try:

        @register_target("mood")
        class Mood(Label):
            """A label under another name."""

            plural = "moods"

        assert target_of(DataConfig(source="x", target="mood")).wants == "one label"
        assert plural_of("mood") == "moods"
        with pytest.raises(ValueError, match="is taken"):
            register_target("mood")(type("Other", (Label,), {}))
    finally:
        _KINDS.pop("mood", None)


def _sets() -> ArraySet:
    pixels = np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)
    given = [
        {"boxes": [[1, 2, 30, 20]], "labels": [0], "masks": np.ones((1, HEIGHT, WIDTH)), "crowd": [True]},
        {"boxes": [], "labels": []},
        {"boxes": [[0, 0, 5, 5], [3, 3, 9, 9]], "labels": [1, 0]},
    ]
    return ArraySet(pixels, given, ["cat", "dog"], target="objects")  # type: ignore[arg-type]


def test_objects_in_memory() -> None:
    images = _sets()
    first = images[0].target
    assert first["masks"].shape == (1, HEIGHT, WIDTH) and first["crowd"].tolist() == [True]
    assert images[1].target["boxes"].shape == (0, 4)
    assert images.counts() == {"cat": 2, "dog": 1}  # objects, not images
    sample = images.prepared(Preprocessing(size=(32, 32)))[2]
    assert sample.target["original"] == (HEIGHT, WIDTH)
    assert sample.target["labels"].tolist() == [1, 0]
    renumbered = matched(images, ["dog", "bird", "cat"])
    assert renumbered[2].target["labels"].tolist() == [0, 2]
    with pytest.raises(DataError, match="carry labels that the training images do not have: 'dog'"):
        matched(images, ["cat"])
    with pytest.raises(DataError, match="label 5, and there are 2 classes"):
        ArraySet(
            np.zeros((1, 4, 4, 3), np.uint8), [{"boxes": [[0, 0, 1, 1]], "labels": [5]}], ["a", "b"], target="objects"
        )
    with pytest.raises(DataError, match="words are given where detection wants boxes of objects"):
        ArraySet(np.zeros((2, 4, 4, 3), np.uint8), [0, 1], target="objects")


def test_depth_in_memory_and_what_is_none() -> None:
    pixels = np.zeros((2, 4, 6, 3), np.uint8)
    depths = np.full((2, 4, 6), 2.5, np.float32)
    depths[0, 0] = 0
    images = ArraySet(pixels, depths, target="depth")
    assert int(torch.isnan(images[0].target).sum()) == 6
    prepared = images.prepared(Preprocessing(size=(8, 8), interpolation="bilinear"))[0].target
    assert prepared.shape == (8, 8)
    assert torch.isnan(prepared[5:]).all() and torch.isnan(prepared[0]).all()
    assert (prepared[2:5] == 2.5).all()
    with pytest.raises(DataError, match="floats are given where depth wants a depth map"):
        ArraySet(pixels, np.zeros(2, np.float32), target="depth")


def test_no_two_objects_with_the_same_content_differ_in_their_digest() -> None:
    def content(*corners: float, label: str = "a") -> str:
        found = Objects.of([[1, 2, 3, 4]], [label], shapes=[Polygons.of([corners])])
        return found.checked("decode", (9, 9), None).content

    assert content(1, 1, 3, 1, 3, 3) == content(1, 1, 3, 1, 3, 3) != content(1, 1, 3, 1, 3, 4)
    assert content(1, 1, 3, 1, 3, 3) != content(1, 1, 3, 1, 3, 3, label="b")


def test_the_manifest_and_strict_and_lists(tmp_path: Path) -> None:
    write(tmp_path)
    config = DataConfig(source=str(tmp_path), target="objects")
    data = open_data(config)
    assert data.manifest.target == "objects"
    assert data.manifest.splits["train"].per_label == data.train.counts()
    before = data.manifest.digest
    file = tmp_path / "annotations" / "all.json"
    file.write_text(file.read_text().replace("33.0", "32.0"))
    assert open_data(config).manifest.digest != before
    with pytest.raises(DataError, match="cannot hold its objects"):
        data.table()
    with pytest.raises(DataError, match="per_class counts images"):
        open_data(config.model_copy(update={"per_class": 2}))
    tested = open_for_evaluation(config, ["cat", "bird", "dog"])
    assert tested[0].target["labels"].tolist() == [0, 2, 0]  # cat, dog, cat


@pytest.mark.filterwarnings("always::vpeft.data.problems.DataWarning")
def test_the_command_line_finds_the_kind_and_says_the_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "coco", 6)
    assert with_its_target(DataConfig(source=str(tmp_path / "coco"))).target == "objects"
    assert with_its_target(DataConfig(source="pocket-dense/digits")).target == "objects"
    assert with_its_target(DataConfig(source="pocket-dense/land")).target == "mask"
    assert with_its_target(DataConfig(source="digits")).target == "label"
    file.write_text(file.read_text().replace('"bbox": [2.0, 3.0, 33.0, 15.0]', '"bbox": [2.0, 3.0, 0.0, 15.0]', 1))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "coco"]) == 0
    said = capsys.readouterr()
    assert "boxes without an area; these boxes are removed: images/0.png" in said.err
    assert "layout coco" in said.out and "4 images in train" in said.out
    assert main(["data", "export", "coco", "out"]) == 0
    assert (tmp_path / "out" / "annotations" / "instances_val.json").is_file()
    assert main(["data", "check", "coco", "--strict"]) == 1
    assert "Mend the data" in capsys.readouterr().err
