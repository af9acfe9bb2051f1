"""Pascal VOC, ADE20K, Cityscapes, YOLO, pairs of folders and Hugging Face: each as its own reader reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Cityscapes, VOCDetection, VOCSegmentation

from vpeft.data import DataConfig, Datasets, open_data
from vpeft.data.class_tables import find_class_table
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.sources.cityscapes import CLASSES, THINGS
from vpeft.data.sources.registry import find_source

HEIGHT, WIDTH = 24, 32


def _picture(file: Path, seed: int, height: int = HEIGHT, width: int = WIDTH) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def _grey(file: Path, numbers: np.ndarray, palette: list[int] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(numbers.astype(np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(file)
    return file


def _open(source: Path | str, target: str = "objects", **fields: Any) -> Datasets:
    return open_data(DataConfig(source=str(source), target=target, **fields))


def _by_stem(data: Datasets) -> dict[str, Any]:
    """The sample of each image by its name."""
    return {
        Path(item.name).name.split(".")[0]: split[index]
        for split in data.splits.values()
        for index, item in enumerate(split.items)
    }


# -- Pascal VOC --------------------------------------------------------------------------------------------------------

XML = """<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax>
<ymax>5</ymax></bndbox></part><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>{xmax}</xmax><ymax>12</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult><bndbox><xmax>30</xmax><xmin>15</xmin><ymin>1</ymin><ymax>24</ymax>
</bndbox></object></annotation>"""


def _voc(root: Path, stems: dict[str, list[str]], year: str = "VOC2012") -> Path:
    folder = root / "VOCdevkit" / year
    for place, stem in enumerate(name for names in stems.values() for name in names):
        _picture(folder / "JPEGImages" / f"{stem}.jpg", place + 100 * int(year == "VOC2007"))
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(XML.format(width=WIDTH, height=HEIGHT, xmax=10 + place))
        numbers = np.zeros((HEIGHT, WIDTH))
        numbers[3:12, 2 : 10 + place] = 1
        numbers[:, 14:30] = 2
        _grey(folder / "SegmentationObject" / f"{stem}.png", numbers)
        numbers[numbers == 1] = 12
        numbers[numbers == 2] = 15
        numbers[0] = 255
        _grey(folder / "SegmentationClass" / f"{stem}.png", numbers, [value for n in range(256) for value in (n, 0, 9)])
    for kind in ("Main", "Segmentation"):
        (folder / "ImageSets" / kind).mkdir(parents=True, exist_ok=True)
        for split, names in stems.items():
            (folder / "ImageSets" / kind / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (folder / "ImageSets" / kind / "dog_train.txt").write_text("a  1\n")
    return folder


def test_voc_boxes_and_masks_as_torchvision_reads_them(tmp_path: Path) -> None:
    _voc(tmp_path, {"train": ["a", "b", "c"], "val": ["d", "e"]})
    data = _open(tmp_path / "VOCdevkit" / "VOC2012")
    assert data.labels == ["dog", "person"]
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 3, "val": 2}
    samples = _by_stem(data)
    for split, stems in (("train", "abc"), ("val", "de")):
        theirs = VOCDetection(str(tmp_path), year="2012", image_set=split)
        masks = VOCSegmentation(str(tmp_path), year="2012", image_set=split)
        for place, stem in enumerate(stems):
            image, told = theirs[place]
            sample = samples[stem]
            assert np.array_equal(sample.input.permute(1, 2, 0), np.asarray(image))
            for row, one in enumerate(told["annotation"]["object"]):
                box = {key: float(value) for key, value in one["bndbox"].items()}
                # From 1 and with the last pixel, to from 0 and up to it.
                wanted = [box["xmin"] - 1, box["ymin"] - 1, box["xmax"], box["ymax"]]
                assert sample.target["boxes"][row].tolist() == wanted
                assert data.labels[sample.target["labels"][row]] == one["name"]
                assert bool(sample.target["crowd"][row]) == (one["difficult"] == "1")
                left, top, right, bottom = map(int, wanted)
                painted = torch.zeros(HEIGHT, WIDTH)
                painted[top:bottom, left:right] = 1
                assert torch.equal(sample.target["masks"][row].float(), painted)
            assert np.asarray(masks[place][1])[0, 0] == 255
    with pytest.warns(DataWarning, match="18 classes have no image"):
        maps = _by_stem(_open(tmp_path / "VOCdevkit", "mask"))
    for place, stem in enumerate("abc"):
        theirs_map = np.asarray(VOCSegmentation(str(tmp_path), year="2012", image_set="train")[place][1])
        assert np.array_equal(maps[stem].target, theirs_map)


def test_voc_years_lists_and_loose_annotations(tmp_path: Path) -> None:
    _voc(tmp_path, {"trainval": ["a", "b"], "test": ["t"]}, "VOC2007")
    data = _open(tmp_path, val_fraction=0.0)
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 2, "test": 1}
    _voc(tmp_path, {"trainval": ["c", "d", "e"]}, "VOC2012")
    both = _open(tmp_path, train_on_val=True)
    assert {name: len(one) for name, one in both.splits.items()} == {"train": 5, "test": 1}
    shutil.rmtree(tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets")
    (tmp_path / "VOCdevkit" / "VOC2012" / "Annotations" / "c.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="is not usable XML"):
        _open(tmp_path / "VOCdevkit" / "VOC2012")


def test_voc_without_a_file(tmp_path: Path) -> None:
    folder = _voc(tmp_path, {"train": [f"{n}" for n in range(8)], "val": ["v"]})
    (folder / "Annotations" / "0.xml").unlink()
    (folder / "JPEGImages" / "1.jpg").unlink()
    with pytest.warns(DataWarning) as said:
        data = _open(folder, max_unreadable=0.5)
    text = "\n".join(str(one.message) for one in said)
    assert "carry no label and are skipped: JPEGImages/0.jpg (there is no 0.xml)" in text
    assert "do not exist; they are skipped: JPEGImages/1.jpg" in text
    assert len(data.train) == 6


# -- ADE20K and Cityscapes ---------------------------------------------------------------------------------------------


def test_ade20k_leaves_number_0_out_and_counts_from_1(tmp_path: Path) -> None:
    numbers = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 151
    for split, count in (("training", 4), ("validation", 2)):
        for index in range(count):
            _picture(tmp_path / "images" / split / f"ADE_{split}_{index}.jpg", index + 10 * count)
            _grey(tmp_path / "annotations" / split / f"ADE_{split}_{index}.png", numbers)
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        + "".join(f"{n}\t0.1\t1\t1\t0\tname{n}, other{n}\n" for n in range(1, 151))
    )
    data = _open(tmp_path, "mask")
    assert find_source(data.config).name == "ade20k"
    assert (len(data.labels), data.labels[0], data.labels[149]) == (150, "name1", "name150")
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 4, "val": 2}
    wanted = np.where(numbers == 0, 255, numbers - 1)
    assert np.array_equal(data.train[0].target, wanted)
    (tmp_path / "annotations" / "training" / "ADE_training_0.png").unlink()
    _grey(tmp_path / "annotations" / "training" / "ADE_training_1.png", np.full((HEIGHT, WIDTH), 151))
    with pytest.warns(DataWarning, match=r"it holds 150; there are 150 classes, 0 to 149|have no mask"):
        assert len(_open(tmp_path, "mask").train) == 2


def test_cityscapes_has_the_19_classes_that_torchvision_lists(tmp_path: Path) -> None:
    numbers = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 34
    for split in ("train", "val", "test"):
        for index in range(2):
            stem = f"{split}/bochum/bochum_00000{index}_000019"
            _picture(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", index + 10 * len(split))
            _grey(tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", numbers)
    data = _open(tmp_path, "mask")
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 2, "val": 2}
    assert "its masks are not published" in str(data.problems)
    trained = {one.id: one.train_id for one in Cityscapes.classes if one.train_id not in (255, -1)}
    assert data.labels == [one.name for one in Cityscapes.classes if one.train_id not in (255, -1)] == list(CLASSES)
    wanted = np.vectorize(lambda number: trained.get(int(number), 255))(numbers)
    assert np.array_equal(data.train[0].target, wanted)
    _grey(tmp_path / "gtFine/train/bochum/bochum_000000_000019_gtFine_labelTrainIds.png", np.full((HEIGHT, WIDTH), 18))
    samples = [sample.target for sample in (_open(tmp_path, "mask").train[place] for place in range(2))]
    assert sorted(int(one.max()) for one in samples) == [18, 255]


@pytest.mark.filterwarnings("ignore:.*classes have no image")
def test_cityscapes_objects_are_those_that_are_told_apart_and_groups_are_crowds(tmp_path: Path) -> None:
    """Two cars, of which one hides a part of the other; a group of persons; a caravan, which does not count; road."""
    stored = np.full((HEIGHT, WIDTH), 7, np.uint16)
    stored[2:12, 3:20] = 26000
    stored[6:16, 10:25] = 26001
    stored[18:22, 4:9] = 24
    stored[18:22, 20:24] = 29000
    for split in ("train", "val", "test"):
        for index in range(2):
            stem = f"{split}/bochum/bochum_00000{index}_000019"
            _picture(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png", index + 10 * len(split))
            truth = tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stored).save(truth)
    data = _open(tmp_path)
    assert find_source(data.config).name == "cityscapes"
    things = [one.name for one in Cityscapes.classes if one.has_instances and not one.ignore_in_eval]
    assert data.labels == ["person", "car"] and list(THINGS) == things
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 2, "val": 2}
    theirs = Cityscapes(str(tmp_path), split="train", mode="fine", target_type="instance")
    target, numbers = data.train[0].target, np.asarray(theirs[0][1])
    assert target["labels"].tolist() == [0, 1, 1] and target["crowd"].tolist() == [True, False, False]
    assert target["boxes"].tolist() == [[4, 18, 9, 22], [3, 2, 20, 12], [10, 6, 25, 16]]
    assert np.array_equal(target["masks"], [numbers == number for number in (24, 26000, 26001)])
    (tmp_path / "gtFine/train/bochum/bochum_000000_000019_gtFine_instanceIds.png").unlink()
    (tmp_path / "gtFine/val/bochum/bochum_000000_000019_gtFine_instanceIds.png").write_bytes(b"no picture")
    with pytest.warns(DataWarning, match="have no mask|cannot be read"):
        left = _open(tmp_path, max_unreadable=1.0)
    assert {name: len(one) for name, one in left.splits.items()} == {"train": 1, "val": 1}
    with pytest.raises(DataError, match="of 8 classes apart, person, .* gives 2"):
        _open(tmp_path, label_names=("a", "b"))


# -- YOLO --------------------------------------------------------------------------------------------------------------


def _yolo(root: Path, yaml: str | None, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for index in range(4):
            _picture(root / "images" / split / f"{index}{split}.png", index + 10 * len(split))
            text = root / "labels" / split / f"{index}{split}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(f"1 0.5 0.5 0.25 0.5\n0 0.125 0.25 0.5 0.25 0.5 {0.5 + index / 10}\n")
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


@pytest.mark.parametrize(
    "yaml",
    [
        "names: [cat, dog]\ntrain: images/train\nval: images/val\n",
        "path: /elsewhere\nnames:\n  0: cat\n  1: dog\ntrain: ../images/train\nval: [images/val]\n",
        "nc: 2\nnames: [cat, dog]\n",
    ],
)
def test_yolo_boxes_and_polygons(tmp_path: Path, yaml: str) -> None:
    data = _open(_yolo(tmp_path, yaml), test_fraction=0.0)
    assert data.labels == ["cat", "dog"]
    assert {name: len(one) for name, one in data.splits.items()} == {"train": 4, "val": 4}
    for stem, sample in _by_stem(data).items():
        bottom = (0.5 + int(stem[0]) / 10) * HEIGHT
        wanted = [[12.0, 6.0, 20.0, 18.0], [4.0, 6.0, 16.0, bottom]]
        assert np.allclose(sample.target["boxes"], wanted)
        assert sample.target["labels"].tolist() == [1, 0]
        assert sample.target["masks"][0, 6:18, 12:20].all()
        assert 0 < sample.target["masks"][1].sum() < (bottom - 6) * 12


def test_yolo_without_a_yaml_file_and_with_faults(tmp_path: Path) -> None:
    _yolo(tmp_path, None)
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "labels" / "train" / "2train.txt").unlink()
    with pytest.warns(DataWarning) as said:
        data = _open(tmp_path)
    text = "\n".join(str(one.message) for one in said)
    assert "their objects are removed: category 1 (7 objects)" in text
    assert "1 images have no object; they are kept as background: images/train/2train.png" in text
    assert data.labels == ["cat"]
    line = tmp_path / "labels" / "train" / "1train.txt"
    line.write_text("0 0.5 0.5 0.25 0.5 0.1\n")
    with pytest.raises(DataError, match=r"1train.txt, line 1: 6 numbers"):
        _open(tmp_path)
    line.write_text("0 0.5 x 0.25 0.5\n")
    with pytest.raises(DataError, match="is not all numbers"):
        _open(tmp_path)
    shutil.rmtree(tmp_path / "labels" / "train")
    shutil.rmtree(tmp_path / "labels" / "val")
    with pytest.raises(DataError, match="no image has its text file in labels"):
        _open(tmp_path, layout="yolo")


@pytest.mark.parametrize("names", ["cat", "[[1], [2]]", "{x: cat}", "[&a [x, x], *a]", "3"])
def test_yolo_names_that_are_none(tmp_path: Path, names: str) -> None:
    with pytest.raises(DataError, match="names is a list of the classes"):
        _open(_yolo(tmp_path, f"names: {names}\n"))
    (tmp_path / "data.yaml").write_text("names: [")
    with pytest.raises(DataError, match="is not usable YAML"):
        _open(tmp_path)


def test_an_image_that_lies_on_its_side_is_measured_as_it_is_shown(tmp_path: Path) -> None:
    _yolo(tmp_path, "names: [cat, dog]\n")
    file = tmp_path / "images" / "train" / "0train.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.open(tmp_path / "images" / "train" / "0train.png").save(file, exif=exif)
    (tmp_path / "images" / "train" / "0train.png").unlink()
    sample = _by_stem(_open(tmp_path))["0train"]
    assert sample.input.shape == (3, WIDTH, HEIGHT)
    assert np.allclose(sample.target["boxes"][0], [9.0, 8.0, 15.0, 24.0])


# -- pairs of folders --------------------------------------------------------------------------------------------------


def _pairs(root: Path, write: Any, folder: str = "masks", count: int = 6) -> Path:
    for index in range(count):
        _picture(root / "images" / f"{index}.png", index)
        (root / folder).mkdir(exist_ok=True)
        write(root / folder / f"{index}.png", index)
    return root


NUMBERS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3


def test_a_palette_is_numbers_with_names_beside(tmp_path: Path) -> None:
    _pairs(tmp_path, lambda file, index: _grey(file, NUMBERS, [200, 0, 0, 0, 200, 0, 0, 0, 200]))
    (tmp_path / "classes.txt").write_text("sky\ngrass\nroad\n")
    data = _open(tmp_path, "mask")
    assert data.labels == ["sky", "grass", "road"]
    assert np.array_equal(data.train[0].target, NUMBERS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", "name,r,g,b\nsky,1,2,3\nlong grass,10,20,30\nroad,0,0,255\nVoid,0,0,0\n"),
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nlong grass,10,20,30\nroad,0,0,255\nvoid,0,0,0\n"),
        ("label_colors.txt", "1 2 3\tsky\n10 20 30\tlong grass\n0 0 255\troad\n0 0 0\tVoid\n"),
        ("classes.txt", "sky 1 2 3\nlong grass 10 20 30\nroad 0 0 255\nvoid 0 0 0\n"),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nsky:1,2,3::\nlong grass:10,20,30::\nroad:0,0,255::\nvoid:0,0,0::\n",
        ),
    ],
)
def test_colours_by_a_table(tmp_path: Path, name: str, text: str) -> None:
    colours = np.array([[1, 2, 3], [10, 20, 30], [0, 0, 255], [0, 0, 0]], np.uint8)
    numbers = np.where(np.arange(WIDTH) == 0, 3, NUMBERS)
    _pairs(tmp_path, lambda file, index: Image.fromarray(colours[numbers]).save(file))
    (tmp_path / name).write_text(text)
    data = _open(tmp_path, "mask")
    assert data.labels == ["sky", "long grass", "road"]
    assert np.array_equal(data.train[0].target, np.where(numbers == 3, 255, numbers))
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 77, np.uint8)).save(tmp_path / "masks" / "0.png")
    with pytest.warns(DataWarning, match="it has 1 colours that are in no table, such as 77, 77, 77"):
        _open(tmp_path, "mask", max_unreadable=0.5)


def test_tables_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("name,r,g,b\nsky,1,2,3\nroad,1,2,3\n")
    with pytest.raises(DataError, match="two classes one colour"):
        find_class_table(tmp_path)
    (tmp_path / "classes.csv").write_text("name,r,g,b\nsky,1,2,300\n")
    with pytest.raises(DataError, match="from 0 to 255"):
        find_class_table(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_depth_in_every_format(tmp_path: Path, suffix: str) -> None:
    millimetres = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 80

    def write(file: Path, index: int) -> None:
        file = file.with_suffix(suffix)
        if suffix == ".npy":
            np.save(file, millimetres.astype(np.float64))
        elif suffix == ".tif":
            values = millimetres.astype(np.float32)
            values[0, 1], values[0, 2] = np.nan, -1
            Image.fromarray(values).save(file)
        else:
            Image.fromarray(millimetres.astype(np.uint16)).save(file)

    data = _open(_pairs(tmp_path, write, "depth"), "depth", depth_scale=0.001)
    depth = data.train[0].target
    assert (depth.dtype, data.labels) == (torch.float32, ["depth"])
    unknown = 3 if suffix == ".tif" else 1
    assert int(torch.isnan(depth).sum()) == unknown
    assert np.allclose(depth[1:], millimetres[1:] / 1000)
    (tmp_path / "depth" / f"0{suffix}").unlink()
    small = np.ones((2, 3), np.uint16) if suffix != ".npy" else np.ones((2, 3))
    none = np.zeros((HEIGHT, WIDTH), small.dtype)
    for number, values in ((1, small), (2, none)):
        file = tmp_path / "depth" / f"{number}{suffix}"
        np.save(file, values) if suffix == ".npy" else Image.fromarray(values).save(file)
    with pytest.warns(DataWarning) as said:
        _open(tmp_path, "depth")
    text = "\n".join(str(one.message) for one in said)
    assert "1 images have no depth map and are skipped: images/0.png" in text
    assert "have another size than their image; both are skipped: images/1.png (3 x 2 for an image of 32 x 24)" in text
    assert "hold no depth above 0; they and their images are skipped: images/2.png" in text


def test_depth_in_lists_and_arrays(tmp_path: Path) -> None:
    depths = np.random.default_rng(0).uniform(0.5, 9, (8, 6, 5)).astype(np.float32)
    pixels = np.random.default_rng(1).integers(0, 255, (8, 6, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, depth=depths)
    data = _open(tmp_path / "a.npz", "depth", depth_scale=2.0)
    item = data.train.items[0]
    assert np.allclose(data.train[0].target, 2 * depths[int(item.name.split("[")[1][:-1])])
    rows = []
    for index in range(8):
        Image.fromarray(pixels[index]).save(tmp_path / f"{index}.png")
        np.save(tmp_path / f"{index}.npy", depths[index])
        rows.append(f"{index}.png,{index}.npy\n")
    (tmp_path / "list.csv").write_text("path,depth\n" + "".join(rows))
    listed = _open(tmp_path / "list.csv", "depth")
    assert np.allclose(listed.train[0].target, depths[int(Path(listed.train.items[0].name).stem)])
    assert listed.table().splitlines()[0] == "path,depth,split"


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _hugging_face(root: Path, form: str) -> Path:
    library = pytest.importorskip("datasets")
    pixels = [np.full((HEIGHT, WIDTH, 3), 20 * index, np.uint8) for index in range(6)]
    objects = [
        {
            "id": [2 * n, 2 * n + 1],
            "area": [1.0, 2.0],
            "bbox": [[1.0, 2.0, 10.0, 8.0 + n], [5.0, 6.0, 7.0, 8.0]],
            "category": [1, 0],
        }
        for n in range(6)
    ]
    category = library.ClassLabel(names=["Mask", "Gloves"])
    one: dict[str, Any] = {
        "id": library.Value("int64"),
        "area": library.Value("float32"),
        "bbox": library.Sequence(library.Value("float32"), length=4),
        "category": category,
    }
    rows: Any = objects
    feature: Any = library.Sequence(one)
    if form == "list":
        rows = [[{key: row[key][place] for key in row} for place in range(2)] for row in objects]
        feature = library.List(one) if hasattr(library, "List") else [one]
    features = library.Features(
        {
            "image": library.Image(),
            "width": library.Value("int32"),
            "height": library.Value("int32"),
            "objects": feature,
        }
    )
    made = library.Dataset.from_dict(
        {
            "image": [Image.fromarray(one) for one in pixels],
            "width": [WIDTH] * 6,
            "height": [HEIGHT] * 6,
            "objects": rows,
        },
        features=features,
    )
    made.save_to_disk(str(root))
    return root


@pytest.mark.parametrize("form", ["mapping", "list"])
def test_hugging_face_objects(tmp_path: Path, form: str) -> None:
    data = _open(_hugging_face(tmp_path / "set", form))
    assert data.labels == ["Mask", "Gloves"]
    assert len(data.train) == 4
    for split in data.splits.values():
        for index, item in enumerate(split.items):
            number = int(item.name.split("/")[-1])
            target = split[index].target
            assert target["boxes"].tolist() == [[1.0, 2.0, 11.0, 10.0 + number], [5.0, 6.0, 12.0, 14.0]]
            assert target["labels"].tolist() == [1, 0]
            assert target["area"].tolist() == [1.0, 2.0]
            assert (split[index].input == 20 * number).all()
    corners = _open(tmp_path / "set", box_format="corners")
    assert all(item.target.boxes[1].tolist() == [5.0, 6.0, 7.0, 8.0] for item in corners.train.items)


def test_hugging_face_masks_and_depth(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets")
    numbers = NUMBERS.astype(np.uint8)
    depth = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 60).astype(np.uint16)
    rows = {
        "image": [Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * n, np.uint8)) for n in range(6)],
        "annotation": [Image.fromarray(numbers)] * 6,
        "depth_map": [Image.fromarray(depth)] * 6,
    }
    features = library.Features({name: library.Image() for name in rows})
    library.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    assert np.array_equal(_open(tmp_path / "set", "mask", image_column="image").train[0].target, numbers)
    target = _open(tmp_path / "set", "depth", image_column="image", depth_scale=0.001).train[0].target
    assert np.allclose(target[1:], depth[1:] / 1000, rtol=1e-6)
    with pytest.raises(DataError, match="which are bbox and category"):
        _open(tmp_path / "set", image_column="image")


# -- and out again -----------------------------------------------------------------------------------------------------


def test_export_of_objects_is_read_back(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    from vpeft.data import export_folder

    _voc(tmp_path, {"train": ["a", "b", "c"], "val": ["d", "e"]})
    data = _open(tmp_path)
    out = export_folder(data, tmp_path / "out")
    told = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert told["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}]
    again = _open(out)
    assert again.labels == data.labels
    assert not again.problems
    mine, theirs = _by_stem(data), _by_stem(again)
    for name, sample in theirs.items():
        first = mine[name.rsplit("_", 1)[-1]]
        for key in ("boxes", "labels", "crowd", "masks"):
            assert torch.equal(sample.target[key], first.target[key])
    coco = COCO(str(out / "annotations" / "instances_train.json"))
    for one in coco.anns.values():
        _, _, width, height = one["bbox"]
        assert one["area"] == width * height  # these masks are whole boxes


def test_export_of_depth_is_read_back(tmp_path: Path) -> None:
    from vpeft.data import export_folder

    depth = (NUMBERS * 1000 + 500).astype(np.uint16)
    _pairs(tmp_path / "in", lambda file, index: Image.fromarray(depth).save(file), "depth")
    data = _open(tmp_path / "in", "depth", depth_scale=0.001)
    again = _open(export_folder(data, tmp_path / "out"), "depth")
    assert {name: len(one) for name, one in again.splits.items()} == {"train": 4, "val": 1, "test": 1}
    assert torch.equal(again.train[0].target, data.train[0].target)
