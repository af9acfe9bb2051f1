"""COCO's JSON: read as pycocotools and torchvision read it, and every fault said by name."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as reference
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from vpeft.data import DataConfig, Datasets, Preprocessing, open_data
from vpeft.data.joint import detection_transform
from vpeft.data.objects import Objects, Polygons
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.sources.registry import find_source

HEIGHT, WIDTH = 30, 40
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def _disc(seed: int) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows - 12 - seed) ** 2 + (columns - 18) ** 2 < 60).astype(np.uint8)


def _uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = np.asfortranarray(mask).ravel(order="F")
    counts, last = [0], 0
    for value in flat:
        if value != last:
            counts.append(0)
            last = int(value)
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def _compressed(mask: np.ndarray) -> dict[str, Any]:
    code = reference.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def annotations(image: int, first: int) -> list[dict[str, Any]]:
    """One object for each way of writing a shape."""
    shapes: list[Any] = [
        [[2.0, 3.0, 20.5, 3.0, 20.5, 18.0, 2.0, 18.0], [25.0, 5.0, 35.0, 6.0, 30.0, 15.0]],
        _compressed(_disc(image)),
        _uncompressed(_disc(image + 1)),
    ]
    boxes = [[2.0, 3.0, 33.0, 15.0], [11.0, 5.0 + image, 15.0, 15.0], [11.0, 6.0 + image, 15.0, 15.0]]
    return [
        {
            "id": first + place,
            "image_id": image,
            "category_id": (7, 3, 7)[place],
            "bbox": boxes[place],
            "area": boxes[place][2] * boxes[place][3],
            "segmentation": shapes[place],
            "iscrowd": int(place == 2),
        }
        for place in range(3)
    ]


def write(
    root: Path, count: int = 6, where: str = "images", name: str = "annotations/all.json", **changed: Any
) -> Path:
    images = []
    (root / where).mkdir(parents=True, exist_ok=True)
    for image in range(count):
        pixels = np.full((HEIGHT, WIDTH, 3), 10 * image + (100 if "val" in name else 0), np.uint8)
        Image.fromarray(pixels).save(root / where / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "height": HEIGHT, "width": WIDTH})
    told = {
        "images": images,
        "annotations": [one for image in range(count) for one in annotations(image, 10 * image)],
        "categories": CATEGORIES,
    }
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told))
    return file


def _open(source: Path, **fields: Any) -> Datasets:
    return open_data(DataConfig(source=str(source), target="objects", **fields))


def _objects(data: Datasets) -> dict[str, Objects]:
    return {Path(item.name).name: item.target for split in data.splits.values() for item in split.items}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_as_pycocotools_and_torchvision_read_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path)
    theirs, pairs = COCO(str(file)), CocoDetection(str(tmp_path / "images"), str(file))
    data = _open(tmp_path)
    capsys.readouterr()
    assert data.labels == ["dog", "cat"]  # by their ids, 3 and 7
    assert not data.problems
    seen = 0
    for split in data.splits.values():
        for index, item in enumerate(split.items):
            number = int(Path(item.name).stem)
            image, target = split[index]
            wanted = theirs.loadAnns(theirs.getAnnIds(number))
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(pairs[number][0]))
            sides = np.array([one["bbox"] for one in pairs[number][1]])
            assert np.allclose(target["boxes"], np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1))
            assert [data.labels[one] for one in target["labels"]] == [
                theirs.cats[one["category_id"]]["name"] for one in wanted
            ]
            assert target["crowd"].tolist() == [bool(one["iscrowd"]) for one in wanted]
            assert np.array_equal(target["masks"], [theirs.annToMask(one) for one in wanted])
            assert (target["masks"].dtype, target["boxes"].dtype) == (torch.uint8, torch.float32)
            assert target["size"] == target["original"] == (HEIGHT, WIDTH)
            assert target["area"].tolist() == [one["area"] for one in wanted]  # those of the file, not of the masks
            seen += 1
    assert seen == 6


def test_a_path_to_the_json_a_folder_and_roboflow_are_the_same(tmp_path: Path) -> None:
    file = write(tmp_path / "a")
    by_folder, by_file = _objects(_open(tmp_path / "a")), _objects(_open(file))
    write(tmp_path / "b", where="train", name="train/_annotations.coco.json")
    write(tmp_path / "b", 2, where="valid", name="valid/_annotations.coco.json")
    roboflow = _open(tmp_path / "b", check="none", test_fraction=0.0)
    assert {name: len(one) for name, one in roboflow.splits.items()} == {"train": 6, "val": 2}
    for name, objects in _objects(roboflow).items():
        for other in (by_folder[name], by_file[name]):
            assert np.array_equal(objects.boxes, other.boxes)
            assert objects.labels == other.labels
    assert find_source(DataConfig(source=str(file))).name == "coco"


def test_splits_as_coco_names_them(tmp_path: Path) -> None:
    write(tmp_path, 4, where="train2017", name="annotations/instances_train2017.json")
    write(tmp_path, 2, where="val2017", name="annotations/instances_val2017.json")
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    data = _open(tmp_path)
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 4, "val": 2}
    assert {item.name for item in data.train.items} == {f"train2017/{index}.png" for index in range(4)}


def test_masks_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    data = _open(tmp_path)

    def never(self: Any, height: int, width: int) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(Polygons, "mask", never)
    assert "masks" not in data.train.with_transform(detection_transform(Preprocessing(), False, masks=False))[0].target
    with pytest.raises(AssertionError, match="decoded"):
        data.train.with_transform(detection_transform(Preprocessing(), False))[0]


def _changed(root: Path, change: Any) -> Path:
    told = json.loads(write(root).read_text())
    change(told)
    (root / "annotations" / "all.json").write_text(json.dumps(told))
    return root


def _said(root: Path, change: Any, **fields: Any) -> tuple[str, Datasets]:
    with pytest.warns(DataWarning) as said:
        data = _open(_changed(root, change), **fields)
    return "\n".join(str(one.message) for one in said), data


def _box(place: int, box: list[Any]) -> Any:
    def change(told: dict[str, Any]) -> None:
        told["annotations"][place]["bbox"] = box

    return change


@pytest.mark.parametrize(
    ("box", "said", "kept"),
    [
        ([2.0, 3.0, math.nan, 4.0], "a number that is not finite; these boxes are removed: images/0.png", None),
        ([2.0, 3.0, "wide", 4.0], "a number that is not finite", None),
        ([2.0, 3.0], "a number that is not finite", None),
        ([2.0, 3.0, 10**400, 4.0], "a number that is not finite", None),
        (
            [2.0, 3.0, 0.0, 4.0],
            "boxes without an area; these boxes are removed: images/0.png (cat at 2, 3, 2",
            None,
        ),
        ([2.0, 3.0, -5.0, 4.0], "boxes without an area", None),
        ([50.0, 3.0, 10.0, 4.0], "boxes that lie outside of them", None),
        ([30.0, 3.0, 20.0, 4.0], "reach over their border by more than a pixel", [30.0, 3.0, 40.0, 7.0]),
    ],
)
def test_bad_boxes(tmp_path: Path, box: list[Any], said: str, kept: list[float] | None) -> None:
    text, data = _said(tmp_path, _box(0, box))
    assert said in text
    objects = _objects(data)["0.png"]
    assert len(objects) == (2 if kept is None else 3)
    if kept is not None:
        assert objects.boxes[0].tolist() == kept
    with pytest.raises(DataError, match="Mend the data"):
        _open(tmp_path, strict=True)


def test_a_box_over_the_border_by_less_than_a_pixel_is_cut_without_a_word(tmp_path: Path) -> None:
    data = _open(_changed(tmp_path, _box(0, [30.0, 3.0, 10.7, 4.0])))
    assert not data.problems
    assert _objects(data)["0.png"].boxes[0].tolist() == [30.0, 3.0, 40.0, 7.0]


def test_corners_given_for_sides_are_refused_and_read_where_stated(tmp_path: Path) -> None:
    def corners(told: dict[str, Any]) -> None:
        for one in told["annotations"]:
            left, top, width, height = one["bbox"]
            one["bbox"] = [left + 4, top + 4, left + 4 + width, top + 4 + height]

    with pytest.raises(DataError, match="18 of 18 boxes leave their image .* state the other box_format"):
        _open(_changed(tmp_path, corners))
    told = json.loads((tmp_path / "annotations" / "all.json").read_text())
    data = _open(tmp_path, box_format="corners")
    assert not data.problems
    assert np.allclose(_objects(data)["1.png"].boxes[1], told["annotations"][4]["bbox"])


def test_unknown_ids_and_images_without_objects(tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["annotations"][0]["category_id"] = 99
        told["annotations"][1]["image_id"] = 1234
        told["annotations"] = [one for one in told["annotations"] if one["image_id"] != 5]
        told["annotations"][5]["id"] = told["annotations"][4]["id"]
        told["annotations"].append({**told["annotations"][7], "id": 500})

    text, data = _said(tmp_path, change)
    assert "1 category numbers have no name; their objects are removed: category 99 (1 objects in all.json)" in text
    assert "of images that are not listed; they are left out: image 1234" in text
    assert "1 images have no object; they are kept as background: images/5.png" in text
    assert "have the id of another one; all are kept: annotation 11 in all.json (2 times)" in text
    assert "state the same box of the same class more than once; it is kept once: images/2.png" in text
    objects = _objects(data)
    assert [len(objects[f"{index}.png"]) for index in range(6)] == [1, 3, 3, 3, 3, 0]
    split, index = next(
        (one, place) for one in data.splits.values() for place, item in enumerate(one.items) if "5.png" in item.name
    )
    empty = split[index].target
    assert (empty["boxes"].shape, empty["labels"].shape) == ((0, 4), (0,))


def test_no_objects_at_all_alone_is_no_reason_to_stop(tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["annotations"] = [one for one in told["annotations"] if one["image_id"] != 5]

    with pytest.warns(DataWarning, match="kept as background"):
        _open(_changed(tmp_path, change), strict=True)


@pytest.mark.parametrize("what", ["images", "categories"])
def test_ids_that_are_used_twice_are_refused(tmp_path: Path, what: str) -> None:
    def change(told: dict[str, Any]) -> None:
        told[what][1]["id"] = told[what][0]["id"]

    with pytest.raises(DataError, match="more than once, and nobody can tell which is meant"):
        _open(_changed(tmp_path, change))


def test_files_and_sizes(tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["images"][0]["height"], told["images"][0]["width"] = WIDTH, HEIGHT
        told["annotations"][4]["segmentation"]["size"] = [HEIGHT + 1, WIDTH]
        told["annotations"][6]["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]
        told["images"].append({"id": 77, "file_name": "gone.png"})

    text, data = _said(tmp_path, change, max_unreadable=0.5)
    assert "have another size than their annotations say; they are skipped: images/0.png (40 x 30, and 30 x 40" in text
    assert "perhaps since its EXIF data turn it" in text
    assert "have masks of another size; they are skipped: images/1.png (40 x 31 for an image of 40 x 30)" in text
    assert "whose shape cannot be drawn; the whole box counts as their mask: images/2.png" in text
    assert "are listed but do not exist; they are skipped: images/gone.png" in text
    objects = _objects(data)
    assert sorted(objects) == ["2.png", "3.png", "4.png", "5.png"]
    split, index = next(
        (one, place) for one in data.splits.values() for place, item in enumerate(one.items) if "2.png" in item.name
    )
    target = split[index].target
    left, top, right, bottom = target["boxes"][0].int().tolist()
    assert target["masks"][0].sum() == (right - left) * (bottom - top)
    assert target["masks"][0, top:bottom, left:right].all()


@pytest.mark.parametrize("far", [1e9, math.inf, math.nan, 10**400])
def test_a_polygon_that_reaches_too_far_is_not_drawn(tmp_path: Path, far: float) -> None:
    def change(told: dict[str, Any]) -> None:
        told["annotations"][0]["segmentation"] = [[1.0, 2.0, 3.0, far, 5.0, 9.0]]

    text, data = _said(tmp_path, change)
    assert "whose shape cannot be drawn; the whole box counts as their mask: images/0.png" in text
    assert _objects(data)["0.png"].shapes is not None
    with pytest.raises(DataError, match="farther out"):
        Polygons.of([[1.0, 2.0, 3.0, 1e9, 5.0, 9.0]]).mask(9, 9)


def test_a_damaged_code_leaves_the_image_out(tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["annotations"][2]["segmentation"]["counts"][0] += 5

    text, data = _said(tmp_path, change, max_unreadable=0.5)
    assert "its masks: a run-length code has 1205 pixels for an image of 40 x 30" in text
    assert "0.png" not in _objects(data)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("[]", "is not COCO's JSON"),
        ("{", "is not usable JSON"),
        ('{"images": []}', "has no categories"),
        ('{"images": [{"id": 1}], "categories": []}', "an image needs id and file_name"),
        ('{"images": [], "categories": [], "annotations": [3]}', "annotation 0 is no object"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, told: str, said: str) -> None:
    (tmp_path / "x.json").write_text(told)
    with pytest.raises(DataError, match=said):
        _open(tmp_path / "x.json")


def test_one_label_is_not_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, name="annotations/instances_all.json")
    with pytest.raises(DataError, match="objects with boxes are given where classification wants one"):
        open_data(DataConfig(source=str(tmp_path)))


def test_a_set_goes_to_another_process(tmp_path: Path) -> None:
    write(tmp_path)
    prepared = _open(tmp_path, augmentation="flip").prepared(Preprocessing(size=(32, 32)))
    there = pickle.loads(pickle.dumps(prepared.train))
    for index in range(len(prepared.train)):
        here, other = prepared.train[index], there[index]
        assert torch.equal(here.input, other.input)
        assert all(torch.equal(here.target[key], other.target[key]) for key in ("boxes", "masks", "labels", "crowd"))
    loader = torch.utils.data.DataLoader(prepared.train, batch_size=None, num_workers=2)
    for one, here in zip(loader, prepared.train, strict=True):
        assert torch.equal(one[0], here.input)
        assert torch.equal(one[1]["boxes"], here.target["boxes"])
