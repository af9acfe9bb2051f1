"""What `vpeft predict` draws and writes for programs, without a model."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vpeft.cli.coco_objects import CocoObjects
from vpeft.cli.drawings import Drawings
from vpeft.cli.nothing_to_predict import NothingToPredict
from vpeft.data.preprocessing import Preprocessing
from vpeft.task import DetectedObjects, Prediction


def loaded(**more: Any) -> Any:
    return SimpleNamespace(
        labels=["land", "sea"], task=SimpleNamespace(name="some_task"), preprocessing=Preprocessing(), **more
    )


def photo(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), "grey").save(path)
    return str(path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


def objects(masks: bool) -> DetectedObjects:
    shapes = torch.zeros(2, 40, 60, dtype=torch.bool)
    shapes[0, 5:20, 10:30] = shapes[1, 20:35, 30:55] = True
    boxes = torch.tensor([[10.0, 5, 30, 20], [30.5, 20, 55, 35]])
    return DetectedObjects(
        boxes, torch.tensor([1, 0]), ("sea", "land"), torch.tensor([0.75, 0.5]), shapes if masks else None, (40, 60), 1
    )


def test_images_of_one_name_in_several_folders_are_not_written_over(tmp_path: Path) -> None:
    drawings = Drawings(tmp_path / "out", loaded())
    for folder in ("a", "b"):
        drawings.add(Prediction(photo(tmp_path / folder / "1.png"), (), objects=objects(masks=False)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.png", "b_1.png"]
    assert pixels(tmp_path / "out" / "1.png").shape == (40, 60, 3)


def test_maps_are_written_for_people_and_for_programs(tmp_path: Path) -> None:
    drawings = Drawings(tmp_path / "out", loaded())
    classes = torch.ones(40, 60, dtype=torch.int64)
    depth = torch.rand(40, 60) + 1
    drawings.add(Prediction(photo(tmp_path / "map.jpg"), (), map=classes))
    drawings.add(Prediction(photo(tmp_path / "far.jpg"), (), map=depth))
    assert np.array_equal(pixels(tmp_path / "out" / "masks" / "map.png"), classes.numpy())
    assert np.array_equal(np.load(tmp_path / "out" / "depth" / "far.npy"), depth.numpy())
    assert pixels(tmp_path / "out" / "map.png").ndim == pixels(tmp_path / "out" / "far.png").ndim == 3
    with pytest.raises(NothingToPredict, match="some_task predicts neither maps nor objects"):
        drawings.add(Prediction(photo(tmp_path / "c.png"), ({"label": "land"},)))


# pycocotools converts arrays in a way that NumPy 2 warns about.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("masks", [False, True])
def test_pycocotools_reads_the_objects_back(masks: bool, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    coco = CocoObjects(["land", "sea"])
    coco.add(Prediction("photos/a.png", (), objects=objects(masks)))
    coco.add(Prediction("photos/b.png", (), objects=objects(masks).first(0)))
    (tmp_path / "found.json").write_text(json.dumps(coco.document()))
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(tmp_path / "found.json"))
        again = read.loadRes(coco.document()["annotations"])
    assert [one["file_name"] for one in read.loadImgs([1, 2])] == ["photos/a.png", "photos/b.png"]
    first, second = again.loadAnns(again.getAnnIds([1]))
    assert read.loadCats([first["category_id"]])[0]["name"] == "sea"
    assert first["bbox"] == [10, 5, 20, 15] and first["score"] == 0.75 and second["bbox"] == [30.5, 20, 24.5, 15]
    if masks:
        assert np.array_equal(read.annToMask(read.anns[1]), objects(masks).masks[0].numpy())  # type: ignore[index]
        assert first["area"] == 300
    with pytest.raises(NothingToPredict, match="does not find objects"):
        coco.add(Prediction("c", ({"label": "land"},)))
