"""Each source on a small data set of its own kind, and on the mistakes that people make in it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.data.pictures import pixels, write, write_classes

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.items import in_order, split_of
from vpeft.data.pocket import SIZES, pocket_tasks
from vpeft.data.problems import DataError, DataWarning
from vpeft.data.sources import registry
from vpeft.data.sources.registry import find_source, known_names, sources, with_its_target
from vpeft.errors import MissingExtra, VpeftError


def _open(source: object, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), **fields))


def _names(data: Datasets) -> dict[str, list[str]]:
    return {split: [item.name for item in images.items] for split, images in data.splits.items()}


def _sizes(data: Datasets) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


def test_words() -> None:
    assert [split_of(word) for word in ("Train", "validation", "valid", " dev ", "TEST", "extra")] == [
        "train",
        "val",
        "val",
        "val",
        "test",
        None,
    ]
    assert in_order({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert in_order({"10", "9", "a"}) == ["10", "9", "a"]
    assert in_order({"²", "1"}) == ["1", "²"]  # isdigit() alone takes a superscript for a number


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folder_of_classes(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", cat=20, dog=20)
    data = _open(tmp_path / "photos")
    assert data.labels == ["cat", "dog"]
    assert _sizes(data) == {"train": 28, "val": 6, "test": 6}
    image, target = data.train[0]
    name = data.train.items[0].name
    label, number = name.removesuffix(".png").split("/")
    assert torch.equal(image, torch.from_numpy(pixels(f"photos/{label}/{int(number)}")).permute(2, 0, 1))
    assert data.labels[target] == label
    assert data.manifest.layout == "folder"
    assert data.manifest.split_seed == 0


def test_folder_of_splits_with_nested_and_foreign_files(tmp_path: Path) -> None:
    for split in ("Train", "valid", "test"):
        write_classes(tmp_path / split, cat=2, dog=2)
    write(tmp_path / "Train" / "cat" / "deep" / "er" / "x.JPG", "deep")
    (tmp_path / "Train" / "cat" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "Train" / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / "Train" / "cat" / "._000.png").write_bytes(b"junk")
    (tmp_path / "README.txt").write_text("about")
    data = _open(tmp_path)
    assert _names(data)["train"] == [
        "Train/cat/000.png",
        "Train/cat/001.png",
        "Train/cat/deep/er/x.JPG",
        "Train/dog/000.png",
        "Train/dog/001.png",
    ]
    assert _sizes(data) == {"train": 5, "val": 4, "test": 4}
    assert [(problem.kind, problem.name) for problem in data.problems] == [("ignored", "Train/cat/Thumbs.db")]
    assert data.manifest.split_seed is None


def test_folder_with_train_and_test_gets_a_validation_split_from_train_alone(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=10, dog=10)
    write_classes(tmp_path / "test", cat=3, dog=3)
    data = _open(tmp_path, val_fraction=0.2)
    assert _sizes(data) == {"train": 16, "val": 4, "test": 6}
    assert all(name.startswith("train/") for name in _names(data)["val"])
    assert {name: split.made for name, split in data.manifest.splits.items()} == {
        "train": True,
        "val": True,
        "test": False,
    }


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, car=6, train=6, bus=6)
    data = _open(tmp_path)
    assert data.labels == ["bus", "car", "train"]


def test_classes_called_like_splits_only(tmp_path: Path) -> None:
    write_classes(tmp_path, train=8, test=8)  # images lie directly in both: they are classes
    assert _open(tmp_path).labels == ["test", "train"]


def test_splits_beside_other_folders_are_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=2, dog=2)
    write_classes(tmp_path, extra=2)
    with pytest.raises(DataError, match=r"mixes splits \(train\) and other folders \(extra\)"):
        _open(tmp_path)


def test_two_folders_for_one_split(tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        write_classes(tmp_path / split, cat=2, dog=2)
    with pytest.raises(DataError, match="two folders for val: val and validation"):
        _open(tmp_path)


def test_loose_images(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for layout in ("folder", None):
        with pytest.raises(DataError, match="holds images but no class folders"):
            _open(tmp_path, layout=layout)


def test_loose_images_beside_classes_are_noted(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=8, dog=8)
    write(tmp_path / "loose.png")
    data = _open(tmp_path)
    assert [(problem.kind, problem.name) for problem in data.problems] == [("ignored", "loose.png")]


# --- lists -----------------------------------------------------------------------------------------------------------


def _list(file: Path, text: str, *, encoding: str = "utf-8") -> Path:
    file.write_text(text, encoding=encoding)
    return file


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_list_with_splits(tmp_path: Path, suffix: str, comma: str) -> None:
    rows = [("path", "label", "split")]
    for split in ("train", "validation", "test"):
        for label in ("10", "9", "2"):
            name = f"{split} {label}.png"
            write(tmp_path / name, name)
            rows.append((name, label, split))
    file = _list(tmp_path / f"all.{suffix}", "\n".join(comma.join(row) for row in rows), encoding="utf-8-sig")
    data = _open(file)
    assert data.labels == ["2", "9", "10"]
    assert _names(data)["val"] == ["validation 10.png", "validation 9.png", "validation 2.png"]
    assert data.val is not None
    assert data.val.targets == [2, 1, 0]


def test_list_columns_in_any_order_and_by_name(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / f"{index}.png")
    body = "".join(f"{'cd'[index % 2]},x,{index}.png\n" for index in range(12))
    data = _open(_list(tmp_path / "l.csv", "Species,note,File\n" + body), image_column="file", label_column="species")
    assert data.labels == ["c", "d"]
    with pytest.raises(DataError, match="no column 'path'"):
        _open(tmp_path / "l.csv")


def test_list_without_header_and_with_root(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / "images" / f"{index}.png")
    file = _list(tmp_path / "l.csv", "".join(f'"{index}.png",{"ab"[index % 2]}\r\n\r\n' for index in range(12)))
    assert sum(_sizes(_open(file, root=tmp_path / "images")).values()) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,1\nb.png,cat\n", r"line 3: the label 'cat' is not a number, while 1 others are"),
        ("path,label\na.png,1\nb.png,\n", "line 3: the label is empty"),
        ("path,label\na,b.png,1\n", "line 2: 3 columns, but the first line has 2"),
        ("path,label,split\na.png,1,train\nb.png,2,holdout\n", "line 3: the split 'holdout' is none of"),
        ("path,label,split\na.png,1,train\nb.png,2,\n", "line 3: the split '' is none of"),
        ("path,lable\na.png,1\n", "no column 'label'. Did you mean 'lable'"),
        ("", "holds no image"),
    ],
)
def test_mistakes_in_a_list(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _open(_list(tmp_path / "l.csv", text))


def test_mixed_labels_can_be_meant(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / f"{index}.png")
    file = _list(tmp_path / "l.csv", "path,label\n" + "".join(f"{i}.png,{'1+'[i % 2]}\n" for i in range(12)))
    assert _open(file, labels_are="names").labels == ["+", "1"]
    with pytest.raises(DataError, match="labels_are is 'numbers'"):
        _open(file, labels_are="numbers")


def test_list_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("path,label\nä.png,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        _open(tmp_path / "l.csv")


@pytest.mark.parametrize("target", ["label", "labels", "values", "caption", "answer"])
@pytest.mark.parametrize(
    "content", [b"\x80\x81,b\n", b"path,label\n" + b"x" * 200_000 + b",a\n"], ids=["bytes", "long"]
)
def test_every_reader_of_lists_refuses_what_is_no_table(tmp_path: Path, target: str, content: bytes) -> None:
    """A cell of 200,000 letters is more than the csv module reads."""
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(VpeftError):
        _open(tmp_path / "l.csv", target=target)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason='needs the extra "bench"')
    parquet = importlib.import_module("pyarrow.parquet")
    for index in range(12):
        write(tmp_path / f"{index}.png")
    table = {
        "label": [index % 3 for index in range(12)],
        "path": [f"{index}.png" for index in range(12)],
        "split": ["train"] * 6 + ["val"] * 3 + ["test"] * 3,
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "l.parquet")
    data = _open(tmp_path / "l.parquet")
    assert data.labels == ["0", "1", "2"]
    assert _sizes(data) == {"train": 6, "val": 3, "test": 3}
    table["path"][4] = None
    parquet.write_table(pyarrow.table(table), tmp_path / "l.parquet")
    with pytest.raises(DataError, match="row 5: the path is empty"):
        _open(tmp_path / "l.parquet")
    (tmp_path / "l.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        _open(tmp_path / "l.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r'pip install "vpeft\[bench\]"'):
        _open(tmp_path / "l.parquet")


# --- VTAB-1k and FGVC ------------------------------------------------------------------------------------------------


def _vtab(root: Path) -> Path:
    lists = {"train800": range(16), "val200": range(16, 22), "test": range(22, 34)}
    lists["train800val200"] = range(22)
    for file, numbers in lists.items():
        for index in numbers:
            write(root / "images" / f"a {index}.png", f"vtab{index}")
        (root / f"{file}.txt").write_text("".join(f"images/a {index}.png {index % 3}\n" for index in numbers))
    return root


def test_vtab(tmp_path: Path) -> None:
    data = _open(_vtab(tmp_path))
    assert data.manifest.layout == "vtab1k"
    assert _sizes(data) == {"train": 16, "val": 6, "test": 12}
    assert data.train.targets == [index % 3 for index in range(16)]
    assert data.manifest.split_seed is None
    both = _open(tmp_path, train_on_val=True)
    assert _sizes(both) == {"train": 22, "test": 12}
    assert _names(both)["train"] == [f"images/a {index}.png" for index in range(22)]


def test_vtab_labels_written_with_zeros_in_front(tmp_path: Path) -> None:
    (_vtab(tmp_path) / "test.txt").write_text(
        "".join(f"images/a {index}.png 0{index % 3}\n" for index in range(22, 34))
    )
    data = _open(tmp_path)
    assert data.labels == ["0", "1", "2"]
    assert data.test is not None
    assert data.test.targets == [index % 3 for index in range(22, 34)]


def test_vtab_of_the_thousand_only(tmp_path: Path) -> None:
    _vtab(tmp_path)
    for name in ("train800", "val200", "test"):
        (tmp_path / f"{name}.txt").unlink()
    assert _sizes(_open(tmp_path, val_fraction=0.2)) == {"train": 18, "val": 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/b.png cat", r"train800\.txt, line 17: the label 'cat' is not a number"),
        ("images/b.png", "line 17: .* is not a path and a label"),
    ],
)
def test_mistakes_in_vtab_lists(tmp_path: Path, line: str, message: str) -> None:
    with (_vtab(tmp_path) / "train800.txt").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


@pytest.mark.parametrize("folder", ["", "images", "Images"])
def test_fgvc_ids_are_numbered_together(tmp_path: Path, folder: str) -> None:
    """Class 5 is in test only and 3 not in test: numbering per split would give 7 two different indices."""
    ids = {"train": [3, 7, 9, 3, 7, 9], "val": [3, 7, 9], "test": [5, 7, 9]}
    for split, labels in ids.items():
        table = {f"{split}/{index}.png": label for index, label in enumerate(labels)}
        for name in table:
            write(tmp_path / folder / name, name)
        (tmp_path / f"{split}.json").write_text(json.dumps(table))
    with pytest.warns(DataWarning, match=r"1 classes have no training image.*5 \(only in test\)"):
        data = _open(tmp_path)
    assert data.manifest.layout == "fgvc"
    assert data.labels == ["3", "5", "7", "9"]
    assert data.train.targets == [0, 2, 3, 0, 2, 3]
    assert data.test is not None
    assert data.test.targets == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a.png": "cat"}', r"train\.json: the label 'cat' of a\.png is not a number"),
        ('{"a.png": true}', "True"),
        ('["a.png"]', "holds a list"),
        ('{"a.png": 1', "is not usable JSON"),
    ],
)
def test_mistakes_in_fgvc_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=message):
        _open(tmp_path)


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_npz(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 2)
    data = _open(tmp_path / "a.npz")
    index = int(data.train.items[3].name.removeprefix("images[").removesuffix("]"))
    assert torch.equal(data.train[3][0], torch.from_numpy(images[index]).permute(2, 0, 1))
    assert data.train.targets[3] == index % 2
    np.savez(tmp_path / "b.npz", images=images.transpose(0, 3, 1, 2), labels=np.arange(20) % 2)
    assert _open(tmp_path / "b.npz").manifest.digest == data.manifest.digest


def test_npz_of_splits_with_names(tmp_path: Path) -> None:
    """The keys of MedMNIST: labels (N, 1)."""
    arrays = {}
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = np.stack([pixels(f"{split}{index}")[..., 0] for index in range(count)])
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(tmp_path / "a.npz", **arrays, classes=np.array(["well", "ill"]))
    data = _open(tmp_path / "a.npz")
    assert data.labels == ["well", "ill"]
    assert data.train.targets == [0, 1] * 4
    assert _sizes(data) == {"train": 8, "val": 4, "test": 4}
    assert data.train[1][0][2].numpy().tolist() == pixels("train1")[..., 0].tolist()


def test_two_npy_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.random((20, 6, 8, 1)))
    np.save(tmp_path / "labels.npy", np.array(["left", "right"] * 10))
    data = _open(tmp_path)
    assert data.manifest.layout == "numpy"
    assert data.labels == ["left", "right"]
    assert _open(f"{tmp_path}/images.npy,{tmp_path}/labels.npy").manifest.digest == data.manifest.digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((3, 4, 4, 3), np.uint8), "labels": np.zeros(2, int)}, "3 images but 2 labels"),
        ({"images": np.zeros((3, 4, 4, 3), np.uint8)}, "images but not labels"),
        ({"images": np.zeros((3, 5, 5, 5), np.uint8), "labels": np.zeros(3, int)}, "shape"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0.5, 1.0])}, "float64"),
        ({"images": np.full((2, 4, 4), 300.0), "labels": np.array([0, 1])}, "300"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 2]), "classes": np.array(["a", "b"])}, "2"),
        ({"x": np.zeros(3)}, "holds x"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, "a"], object)}, "Python objects are refused"),
    ],
)
def test_mistakes_in_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        _open(tmp_path / "a.npz")


# --- named sets ------------------------------------------------------------------------------------------------------


def test_digits() -> None:
    pytest.importorskip("sklearn", reason='needs the extra "bench"')
    data = _open("digits")
    assert data.labels == [str(digit) for digit in range(10)]
    assert sum(_sizes(data).values()) == 1797
    image, _ = data.train[0]
    assert image.shape == (3, 64, 64)
    assert torch.equal(image[0], image[2])
    assert image.max() > 240
    assert image.min() < 15
    from sklearn.datasets import load_digits

    number = int(data.train.items[5].name[7:11])
    ink = torch.from_numpy(load_digits().images[number] * 255 / 16)
    seen = torch.nn.functional.avg_pool2d(data.train[5][0][:1].float(), 8)[0]
    assert (seen - ink).abs().mean() < 20  # upright, the right way round, and not inverted
    assert data.labels[data.train.targets[5]] == str(load_digits().target[number])


def test_pocket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))  # nothing is read from, or left in, the user's own
    for split, count in (("train", 48), ("val", 24), ("test", 24)):  # drawn by code: few are quick
        monkeypatch.setitem(SIZES, split, count)
    data = _open("pocket/orientation")
    task = pocket_tasks()["orientation"]
    assert data.labels == list(task.labels)
    assert data.manifest.split_seed is None
    for split, images in data.splits.items():
        pictures, targets = task.load(split)
        assert images.targets == targets.tolist()
        assert torch.equal(images[11][0].permute(1, 2, 0), torch.from_numpy(pictures[11]))
    assert len(data.splits) == 3
    with pytest.raises(DataError, match="Did you mean 'orientation'"):
        _open("pocket/orientatio")
    assert "pocket/orientation" in known_names()


# --- the registry ----------------------------------------------------------------------------------------------------


def test_each_source_describes_itself() -> None:
    files = {file.stem for file in Path(registry.__file__).parent.glob("*.py")} - {"__init__", "registry"}
    assert {type(one).__module__.rpartition(".")[2] for one in sources().values()} == files
    assert all(one.title and name == one.name for name, one in sources().items())


def test_a_list_of_images_is_one_of_labels_unless_another_target_is_stated(tmp_path: Path) -> None:
    file = _list(tmp_path / "l.csv", "path,label\na.png,x\n")
    assert with_its_target(DataConfig(source=str(file))).target == "label"
    assert with_its_target(DataConfig(source="pocket-captions")).target == "caption"


def test_unknown_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        _open("digit")
    with pytest.raises(DataError, match=r"no layout 'foldr'. Did you mean 'folder'"):
        _open("digits", layout="foldr")
    with pytest.raises(DataError, match="none of the layouts"):
        _open(tmp_path)


def test_a_folder_called_like_a_named_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "digits", cat=8, dog=8)
    with pytest.raises(DataError, match=r"in several ways.*layout 'digits'.*layout 'folder'"):
        _open("digits")
    assert _open("digits", layout="folder").labels == _open("./digits").labels == ["cat", "dog"]


def test_two_ways_to_read(tmp_path: Path) -> None:
    _vtab(tmp_path)
    write_classes(tmp_path, cat=2)
    np.save(tmp_path / "images.npy", np.zeros(1))
    with pytest.raises(DataError, match=r"layout 'numpy'.*layout 'vtab1k'"):
        _open(tmp_path)
    assert _open(tmp_path, layout="vtab1k").manifest.layout == "vtab1k"


def test_adding_a_source_is_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise.py").write_text(
        "import numpy as np\n"
        "from vpeft.data.items import ArrayPicture, Item, Listing\n"
        "from vpeft.data.sources.registry import Claim, source\n"
        "@source\n"
        "class Noise:\n"
        "    name = 'noise'\n"
        "    title = 'noise'\n"
        "    def claims(self, config):\n"
        "        return Claim.MARK if config.source == 'noise' else Claim.NONE\n"
        "    def names(self):\n"
        "        return ['noise']\n"
        "    def read(self, config):\n"
        "        images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)\n"
        "        items = [Item(f'{i:02d}', 'ab'[i % 2], ArrayPicture(images, i)) for i in range(20)]\n"
        "        return Listing('noise', whole=items)\n"
    )
    package = importlib.import_module("vpeft.data.sources")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    registry._discover.cache_clear()
    try:
        assert _open("noise").labels == ["a", "b"]
        assert find_source(DataConfig(source="noise")).name == "noise"
    finally:
        registry._SOURCES.pop("noise", None)
        sys.modules.pop("vpeft.data.sources.noise", None)
