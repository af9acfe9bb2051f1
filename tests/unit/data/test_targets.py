"""Targets of every kind from every source that has them, and the sentences for those of another kind."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.data.pictures import pixels, write, write_classes

from vpeft.batch import Sample, collate
from vpeft.data import ArraySet, DataConfig, Datasets, open_data
from vpeft.data.export import export_folder
from vpeft.data.image_set import matched
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.splits import hold_out

COUNT = 20


def _list(root: Path, header: str, rows: list[str], name: str = "list.csv") -> Path:
    for index in range(len(rows)):
        write(root / f"{index:02d}.png", f"{index}")
    file = root / name
    file.write_text(header + "\n" + "".join(f"{index:02d}.png,{row}\n" for index, row in enumerate(rows)))
    return file


def _open(source: Path | str, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), **fields))  # type: ignore[arg-type]


def _targets(data: Datasets) -> dict[str, list[float]]:
    return {
        item.name: target.tolist()
        for split in data.splits.values()
        for item, target in zip(split.items, split.targets, strict=True)
    }


def test_a_sample_is_a_pair_with_a_name(tmp_path: Path) -> None:
    data = _open(write_classes(tmp_path, ant=6, bee=6))
    sample = data.train[3]
    image, label = sample
    assert isinstance(sample, Sample)
    assert sample.id == data.train.items[3].name
    assert (label, sample.target) == (data.train.targets[3],) * 2
    assert torch.equal(sample.input, image)
    assert collate([data.train[0], data.train[1]]).ids == (data.train.items[0].name, data.train.items[1].name)


# -- several labels ----------------------------------------------------------------------------------------------------

SETS = [["red", "round"], ["red"], ["blue", "round"], []] * (COUNT // 4)


@pytest.mark.parametrize("separator", [";", "|", ", "])
def test_labels_in_one_cell(separator: str, tmp_path: Path) -> None:
    data = _open(_list(tmp_path, "path,labels", [f'"{separator.join(one)}"' for one in SETS]), target="labels")
    assert data.labels == ["blue", "red", "round"]
    targets = _targets(data)
    assert targets["00.png"] == [0, 1, 1]
    assert targets["02.png"] == [1, 0, 1]
    assert targets["03.png"] == [0, 0, 0]
    assert data.train.targets[0].dtype == torch.float32
    assert data.manifest.target == "labels"
    again = tmp_path / "again.csv"
    again.write_text(data.table())
    assert _targets(_open(again, target="labels", root=tmp_path)) == targets


def test_a_column_for_each_label(tmp_path: Path) -> None:
    names = ["red", "round", "blue"]
    rows = [",".join(str(int(name in one)) for name in names) for one in SETS]
    data = _open(_list(tmp_path, "path,red,round,blue", rows), target="labels")
    assert data.labels == names  # in the order of the columns
    assert _targets(data)["02.png"] == [0, 1, 1]
    two = _open(tmp_path / "list.csv", target="labels", label_columns=["blue", "red"])
    assert two.labels == ["blue", "red"]


def test_splits_keep_the_rarest_label_in_train(tmp_path: Path) -> None:
    sets = ["common;rare" if index in (3, 8) else "common" for index in range(COUNT)]
    data = _open(_list(tmp_path, "path,labels", sets), target="labels")
    assert data.train.counts()["rare"] >= 1
    assert data.train.labels_present == ["common", "rare"]


# -- values ------------------------------------------------------------------------------------------------------------


def test_one_value_and_quantile_bins(tmp_path: Path) -> None:
    ages = [float(index) ** 2 / 3 for index in range(100)]
    data = _open(_list(tmp_path, "path,age", [repr(age) for age in ages]), target="values", label_column="age")
    assert data.labels == ["age"]
    targets = _targets(data)
    assert targets["09.png"] == [pytest.approx(27.0)]
    for split in (data.val, data.test):
        assert split is not None
        tenths = {int(item.name[:2]) // 10 for item in split.items}
        assert tenths == set(range(10))  # every tenth of the range has its share


def test_several_values(tmp_path: Path) -> None:
    rows = [f"{index},{-index / 2}" for index in range(COUNT)]
    data = _open(_list(tmp_path, "path,x,y", rows), target="values", label_columns=("x", "y"))
    assert data.labels == ["x", "y"]
    assert _targets(data)["03.png"] == [3.0, -1.5]
    again = tmp_path / "again.csv"
    again.write_text(data.table())
    assert _targets(_open(again, target="values", label_columns=("x", "y"), root=tmp_path)) == _targets(data)


def test_a_row_without_a_value_is_skipped_and_said(tmp_path: Path) -> None:
    rows = ["" if index == 2 else "nan" if index == 5 else str(index / 4) for index in range(COUNT)]
    with pytest.warns(DataWarning, match="2 images carry no label and are skipped: 02.png"):
        data = _open(_list(tmp_path, "path,value", rows), target="values")
    assert sum(map(len, data.splits.values())) == COUNT - 2


# -- arrays ------------------------------------------------------------------------------------------------------------


def _npz(root: Path, y: np.ndarray, **more: np.ndarray) -> Path:
    file = root / "a.npz"
    np.savez(file, x=np.stack([pixels(str(index)) for index in range(len(y))]), y=y, **more)
    return file


@pytest.mark.parametrize(
    ("y", "target", "labels", "first"),
    [
        (np.arange(COUNT) / 3, "values", ["value"], [0.0]),
        (np.arange(2 * COUNT).reshape(COUNT, 2) / 3, "values", ["value0", "value1"], [0.0, pytest.approx(1 / 3)]),
        (np.eye(4, dtype=int)[np.arange(COUNT) % 4], "labels", ["0", "1", "2", "3"], [1, 0, 0, 0]),
    ],
)
def test_arrays(y: np.ndarray, target: str, labels: list[str], first: list[float], tmp_path: Path) -> None:
    data = _open(_npz(tmp_path, y), target=target)
    assert data.labels == labels
    assert _targets(data)["images[0]"] == first
    made = ArraySet(np.zeros((COUNT, 4, 4), np.uint8), y, target=target)  # type: ignore[arg-type]
    assert made.labels == labels
    assert made[0].target.tolist() == first


def test_named_columns_of_an_array(tmp_path: Path) -> None:
    data = _open(_npz(tmp_path, np.eye(2)[np.arange(COUNT) % 2], classes=np.array(["a", "b"])), target="labels")
    assert data.labels == ["a", "b"]


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    tags = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "owl"]))
    features = datasets.Features(
        image=datasets.Image(),
        tags=tags,
        age=datasets.Value("float32"),
        box=datasets.Sequence(datasets.Value("float32")),
    )
    picture = [Image.fromarray(pixels(str(index))) for index in range(COUNT)]
    made = datasets.Dataset.from_dict(
        {
            "image": picture,
            "tags": [[0, index % 3] for index in range(COUNT)],
            "age": [index / 2 for index in range(COUNT)],
            "box": [[index, 1.0] for index in range(COUNT)],
        },
        features=features,
    )
    made.save_to_disk(tmp_path / "d")
    labels = _open(tmp_path / "d", target="labels", label_column="tags")
    assert labels.labels == ["cat", "dog", "owl"]
    assert _targets(labels)["000002"] == [1, 0, 1]
    assert _targets(_open(tmp_path / "d", target="values", label_column="age"))["000003"] == [1.5]
    assert _targets(_open(tmp_path / "d", target="values", label_column="box"))["000003"] == [3.0, 1.0]
    with pytest.raises(DataError, match="floats are given where classification wants one label: use --task regression"):
        _open(tmp_path / "d", label_column="age")
    with pytest.raises(DataError, match="several labels of each image are given .* use --task multilabel"):
        _open(tmp_path / "d", label_column="tags")


def test_hugging_face_masks(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    masks = [Image.fromarray(np.full((12, 12), index % 2, np.uint8)) for index in range(COUNT)]
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    picture = [Image.fromarray(pixels(str(index))) for index in range(COUNT)]
    datasets.Dataset.from_dict({"image": picture, "annotation": masks}, features=features).save_to_disk(tmp_path / "d")
    data = _open(tmp_path / "d", target="mask")
    assert data.labels == ["0", "1"]
    item = data.train.items[0]
    assert data.train[0].target.unique().tolist() == [int(item.name) % 2]


# -- what belongs to another task --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "target", "message"),
    [
        ("{0}.5", "label", "floats are given where classification wants one label: use --task regression"),
        ("{0}.5", "labels", "floats are given where multilabel wants any number of labels: use --task regression"),
        ("cat{0}", "values", "words are given where regression wants numbers: use --task classification"),
        ("cat{0}", "mask", "words are given where .* wants a mask: use --task classification"),
    ],
)
def test_lists_of_another_kind(row: str, target: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        _open(_list(tmp_path, "path,label", [row.format(index) for index in range(COUNT)]), target=target)


def test_floats_that_are_names(tmp_path: Path) -> None:
    source = _list(tmp_path, "path,label", [f"{index % 2}.5" for index in range(COUNT)])
    assert _open(source, labels_are="names").labels == ["0.5", "1.5"]


@pytest.mark.parametrize(
    ("y", "target", "message"),
    [
        (np.arange(COUNT) / 3, "label", "floats are given where classification wants one label: use --task regression"),
        (np.eye(4)[np.arange(COUNT) % 4], "label", "several labels .* use --task multilabel"),
        (np.zeros((COUNT, 12, 12), int), "label", "masks are given where classification"),
        (np.arange(COUNT), "labels", "words are given where multilabel .* use --task classification"),
        (np.array(["a"] * COUNT), "values", "words are given where regression"),
        (np.arange(COUNT) / 3, "mask", "floats are given .* use --task regression"),
    ],
)
def test_arrays_of_another_kind(y: np.ndarray, target: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        _open(_npz(tmp_path, y), target=target)


def test_a_source_of_labels_has_no_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="words are given where regression wants numbers: use --task classification"):
        _open(write_classes(tmp_path, ant=4, bee=4), target="values")


# -- labels that differ ------------------------------------------------------------------------------------------------


def test_splits_with_disjoint_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ant=4, bee=4)
    write_classes(tmp_path / "test", cat=4, bee=2)
    with pytest.warns(DataWarning, match="no training image"):
        data = _open(tmp_path, val_fraction=0)
    assert data.labels == ["ant", "bee", "cat"]
    assert data.test is not None
    assert data.train.labels_present == ["ant", "bee"]
    assert data.test.labels_present == ["bee", "cat"]


def test_matched_by_name() -> None:
    images = np.stack([pixels(str(index)) for index in range(4)])
    val = ArraySet(images, [0, 1, 1, 0], ["cat", "bee"])
    seen = matched(val, ["ant", "bee", "cat"])
    assert seen.targets == [2, 1, 1, 2]
    assert seen.labels == ["ant", "bee", "cat"]
    assert torch.equal(seen[1].input, val[1].input)
    assert matched(val, ["cat", "bee"]) is val
    with pytest.raises(DataError, match=r"do not have: 'cat'. .*'cats'"):
        matched(val, ["cats", "bee"])
    # A name that no image carries is no reason to refuse.
    assert matched(ArraySet(images, [1] * 4, ["unused", "bee"]), ["ant", "bee"]).targets == [1] * 4


def test_matched_sets_of_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    write_classes(tmp_path / "val", bee=3, cat=2)
    val = ImageFolder(str(tmp_path / "val"))
    seen = matched(val, ["ant", "bee", "cat"])
    assert [seen[index].target for index in range(5)] == seen.targets == [1, 1, 1, 2, 2]
    assert seen[0].input.tobytes() == val[0][0].tobytes()
    assert matched(val, ["bee", "cat"]) is val
    with pytest.raises(DataError, match="do not have: 'cat'"):
        matched(val, ["ant", "bee"])
    nameless = [(torch.zeros(3, 4, 4), 1)]
    assert matched(nameless, ["ant", "bee"]) is nameless


def test_matched_several_labels_and_values() -> None:
    images = np.zeros((2, 4, 4), np.uint8)
    several = matched(ArraySet(images, np.array([[1, 0], [1, 1]]), ["b", "a"], target="labels"), ["a", "b"])
    assert [one.tolist() for one in several.targets] == [[0, 1], [1, 1]]
    with pytest.raises(DataError, match="named x, y here and y, x in training"):
        matched(ArraySet(images, np.array([[1.5, 0], [1, 1]]), ["x", "y"], target="values"), ["y", "x"])


def test_strata_take_the_place_of_the_class(tmp_path: Path) -> None:
    data = _open(write_classes(tmp_path, ant=10, bee=10), val_fraction=0, test_fraction=0)
    strata = {item.name: str(index // 5) for index, item in enumerate(data.train.items)}
    _, out = hold_out(data.train.items, 0.2, 0, strata=strata)
    assert sorted(strata[item.name] for item in out) == ["0", "1", "2", "3"]


def test_what_is_not_asked_for_is_not_in_digests() -> None:
    stated = DataConfig(source="x").model_dump()
    assert "target" not in stated
    assert "window" not in stated
    assert DataConfig.model_validate(stated) == DataConfig(source="x")
    asked = DataConfig(source="x", target="mask", window=(0, 4095))
    assert DataConfig.model_validate(asked.model_dump(mode="json")) == asked


def test_a_list_quotes_formulas_and_reads_them_back(tmp_path: Path) -> None:
    """A spreadsheet runs a cell that begins with = or @; the list that vpeft writes must not hold one."""
    folder = tmp_path / "files"
    labels = ["=1+1;@red", "'=1+1", "-1.5", "+a", "'plain"]
    data = _open(_list(folder, "path,labels", [f'"{one}"' for one in labels for _ in range(4)]), target="labels")
    written = data.table()
    cells = [cell for row in csv.reader(io.StringIO(written)) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]
    again = folder / "again.csv"
    again.write_text(written)
    assert _targets(_open(again, target="labels", root=folder)) == _targets(data)
    assert _open(again, target="labels", root=folder).labels == data.labels
    out = export_folder(data, tmp_path / "out")
    cells = [cell for row in csv.reader(io.StringIO((out / "list.csv").read_text())) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]
    assert _open(out / "list.csv", target="labels").labels == data.labels
