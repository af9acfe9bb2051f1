"""The offline suite: it is found, it is what its digests say, it is kept, and it fails with a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vpeft.data.pocket import SIZES, TIERS, digest, pocket_tasks
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


def test_tiers_name_tasks_that_exist() -> None:
    assert set(TIERS) == {"smoke", "quick", "demo", "full"}
    assert len(TIERS["smoke"].tasks or ()) == 2
    for tier in TIERS.values():
        assert set(tier.tasks or ()) <= set(NAMES)


def test_the_bench_extra_installs_what_the_tasks_are_made_of() -> None:
    """A fresh environment with the extra that the error names must be able to make every task."""
    import re
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[<>=]", line)[0] for line in project["optional-dependencies"]["bench"]}
    packages = {"skimage": "scikit-image", "sklearn": "scikit-learn", "mpl_toolkits.basemap_data": "basemap-data"}
    needed = {packages.get(module, module) for task in pocket_tasks().values() for module in task.needs}
    assert needed and needed <= extra
