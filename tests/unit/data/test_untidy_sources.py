"""Folders and lists as they come from notebooks, network drives, archives and spreadsheets."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.pictures import pixels, write, write_classes

from vpeft.data import DataConfig, Datasets, find_images, open_data
from vpeft.data.problems import DataError, DataWarning


def _open(source: Path, **fields: object) -> Datasets:
    return open_data(DataConfig(source=str(source), **fields))  # type: ignore[arg-type]


def _count(data: Datasets) -> int:
    return sum(map(len, data.splits.values()))


# -- what programs leave -----------------------------------------------------------------------------------------------

LEFT = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "#recycle"]


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("where", ["beside the classes", "in a class", "deeper"])
def test_folders_of_other_programs_are_left_out(name: str, where: str, tmp_path: Path) -> None:
    root = write_classes(tmp_path / "photos", cat=8, dog=8)
    before = _open(root).manifest
    inner = {"beside the classes": name, "in a class": f"cat/{name}", "deeper": f"cat/{name}/x"}[where]
    write(root / inner / "copy.png", "copy")
    with pytest.warns(DataWarning, match=rf"1 folders of images .* are left out: .*{name} \(1 image\)"):
        data = _open(root)
    assert data.manifest.digest == before.digest
    assert _count(_open_quietly(root)) == 16
    with pytest.warns(DataWarning, match=rf"1 folders of images .* are left out: .*{name} \(1 image\)"):
        assert len(find_images([root])) == 16


@pytest.mark.filterwarnings("ignore::vpeft.data.problems.DataWarning")
def _open_quietly(root: Path) -> Datasets:
    with pytest.warns(DataWarning):
        return _open(root, strict=True)  # harmless: strict goes on


def test_an_empty_hidden_folder_is_not_worth_a_word(tmp_path: Path) -> None:
    root = write_classes(tmp_path, cat=8, dog=8)
    (root / ".git").mkdir()
    assert not _open(root).problems


def test_a_data_set_in_a_hidden_folder_is_read(tmp_path: Path) -> None:
    assert _count(_open(write_classes(tmp_path / ".cache" / "photos", cat=8, dog=8))) == 16


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    root = write_classes(tmp_path, cat=8, dog=8)
    os.rename(root / "cat" / "000.png", os.fsencode(root / "cat") + b"/caf\xe9.png")
    os.rename(root / "dog", os.fsencode(root) + b"/chat\xe9")
    data = _open(root)
    assert data.labels == ["cat", "chat\\xe9"]
    names = {item.name for split in data.splits.values() for item in split.items}
    assert "cat/caf\\xe9.png" in names
    assert len(names) == 16
    data.manifest.model_dump_json().encode("utf-8")
    data.table().encode("utf-8")
    assert data.manifest.digest
    for split in data.splits.values():
        for index in range(len(split)):
            split.path(index).encode("utf-8")
            assert split[index].input.shape == (3, 12, 12)


# -- lists -------------------------------------------------------------------------------------------------------------

ROWS = [(f"photos/{label}/{index:03d}.png", label) for label in ("cat", "dog") for index in range(8)]
FORMS = {
    "plain": "path,label\n" + "".join(f"{path},{label}\n" for path, label in ROWS),
    "semicolon": "path;label\n" + "".join(f"{path};{label}\n" for path, label in ROWS),
    "tabs": "path\tlabel\n" + "".join(f"{path}\t{label}\n" for path, label in ROWS),
    "backslashes": "path,label\n" + "".join(f"{path},{label}\n".replace("/", "\\") for path, label in ROWS),
    "no suffix": "path,label\n" + "".join(f"{path[:-4]},{label}\n" for path, label in ROWS),
    "row numbers": ",path,label\n" + "".join(f"{row},{path},{label}\n" for row, (path, label) in enumerate(ROWS)),
    "byte order mark": "\ufeffpath,label\n" + "".join(f"{path},{label}\n" for path, label in ROWS),
}


@pytest.mark.parametrize("form", FORMS)
def test_lists_of_spreadsheets_mean_the_same(form: str, tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", cat=8, dog=8)
    (tmp_path / "plain.csv").write_text(FORMS["plain"])
    (tmp_path / "list.csv").write_text(FORMS[form], encoding="utf-8")
    data = _open(tmp_path / "list.csv")
    assert data.manifest.digest == _open(tmp_path / "plain.csv").manifest.digest
    assert _count(data) == 16


def test_a_suffix_that_is_not_clear_is_not_guessed(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", cat=8, dog=8)
    write(tmp_path / "photos" / "cat" / "000.jpg")
    (tmp_path / "list.csv").write_text(FORMS["no suffix"])
    with pytest.raises(DataError, match="do not exist; they are skipped: photos/cat/000"):
        _open(tmp_path / "list.csv")


def test_nan_is_no_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "photos", cat=8, dog=8)
    rows = "".join(f"{path},{label if row % 7 else 'nan'}\n" for row, (path, label) in enumerate(ROWS))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    with pytest.warns(DataWarning, match=r"3 images carry no label and are skipped: photos/cat/000\.png \(line 2\)"):
        data = _open(tmp_path / "list.csv")
    assert data.labels == ["cat", "dog"]
    assert _open(tmp_path / "list.csv", labels_are="names").labels == ["cat", "dog", "nan"]


# -- Parquet with images -----------------------------------------------------------------------------------------------


def _encoded(index: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels(str(index))).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("form", ["mapping", "bytes"])
@pytest.mark.parametrize("stated", [True, False])
def test_parquet_holds_images(form: str, stated: bool, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": _encoded(i), "path": f"{i}.png"} if form == "mapping" else _encoded(i) for i in range(20)]
    file = tmp_path / "train.parquet"
    parquet.write_table(arrow.table({"image": images, "label": [index % 2 for index in range(20)]}), file)
    data = _open(file, image_column="image" if stated else None)
    assert _count(data) == 20
    assert data.labels == ["0", "1"]
    item = data.train.items[0]
    assert np.array_equal(np.asarray(data.train.image(0)), pixels(str(int(item.name) - 1)))
    assert item.label == str((int(item.name) - 1) % 2)


def test_parquet_of_hugging_face_names_its_classes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["wolf", "cat"]))
    images = [Image.fromarray(pixels(str(index))) for index in range(20)]
    made = datasets.Dataset.from_dict({"image": images, "label": [index % 2 for index in range(20)]}, features=features)
    made.to_parquet(tmp_path / "a.parquet")
    assert _open(tmp_path / "a.parquet").labels == ["wolf", "cat"]
