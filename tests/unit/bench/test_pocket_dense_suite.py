"""The suite pocket-dense: its tasks learn what they say from the pictures that the digests name."""

from __future__ import annotations

from functools import cache

import pytest

import vpeft
from vpeft.bench.sealed import TestSetSealed
from vpeft.bench.suite import BenchTask, Suite
from vpeft.bench.suites import pocket_dense
from vpeft.data.pocket_dense import SIZES
from vpeft.method import get_method
from vpeft.method_spec import parse_all

LEARNT = {
    "land": ("semantic_segmentation", "miou", ("land", "lake", "sea")),
    "digits": ("instance_segmentation", "mask_AP", tuple("0123456789")),
    "scenes": ("detection", "AP", ("ball", "block", "ring", "arch", "post", "tree")),
    "scenes-masks": ("instance_segmentation", "mask_AP", ("ball", "block", "ring", "arch", "post", "tree")),
    "scenes-depth": ("depth", "abs_rel", ("depth",)),
}


def _suite() -> Suite:
    return vpeft.suites.pocket_dense()


@cache
def _task(name: str) -> BenchTask:
    return _suite().task(name)


def test_the_suite_is_found_under_both_spellings() -> None:
    assert "pocket-dense" in vpeft.suites.names()
    assert "pocket_dense" in dir(vpeft.suites)
    assert _suite() is getattr(vpeft.suites, "pocket-dense")()
    assert _suite().tasks == tuple(LEARNT)


@pytest.mark.parametrize("name", LEARNT)
def test_a_task_states_what_it_learns(name: str) -> None:
    task = _task(name)
    kind, leading, labels = LEARNT[name]
    assert (task.learns.name, task.learns.leading.name) == (kind, leading)
    assert task.labels == labels
    assert task.image_size == (128, 128)
    assert (task.train.size, task.val.size) == (SIZES["train"], SIZES["val"])
    assert task.train_and_val().size == SIZES["train"] + SIZES["val"]
    sample = task.train.dataset(task.labels, None, 0)[0]
    assert sample.id.startswith("train/")


def test_the_test_split_is_sealed() -> None:
    task = _task("land")
    with pytest.raises(TestSetSealed, match="pocket-dense/land is sealed"):
        len(task.test)


def test_tasks_of_the_same_pictures_have_digests_of_their_own() -> None:
    digests = {_task(name).digest for name in LEARNT}
    assert len(digests) == len(LEARNT)


def test_the_data_of_land_and_scenes_are_those_of_the_recorded_runs() -> None:
    """Whatever changes in `digits` or in the suite, the keys of these runs stay."""
    found = {name: _task(name).digest[:12] for name in LEARNT if name != "digits"}
    assert found == {
        "land": "0305a9472f63",
        "scenes": "3179fc2dd297",
        "scenes-masks": "840c985768f1",
        "scenes-depth": "312cfa99f44a",
    }


def test_other_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_dense, "stored_digests", lambda: {"land": {"val": "0" * 64}})
    with pytest.raises(pocket_dense.OtherPictures, match="'val' of pocket-dense/land"):
        _suite().open("land")


def test_the_rows_of_the_benchmark_are_methods_with_their_fields() -> None:
    for asked in parse_all(pocket_dense.METHODS):
        for method in asked.methods:
            get_method(method.name)(**method.fields)
