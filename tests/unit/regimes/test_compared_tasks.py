"""Several tasks with one adapter against a model for each: all runs, one record, measured denominators, a picture."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vpeft.cli import main
from vpeft.data.problems import DataError, DataWarning
from vpeft.regimes.compared_tasks import PICTURE, RECORD, MultiTaskRecipe, compare_tasks, gains
from vpeft.tasks.multi_task import MultiTask

pytestmark = pytest.mark.filterwarnings("ignore::vpeft.data.problems.DataWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with masks of two halves, edges between them, and normals; splits train, val and test."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for number in range(count):
            edge = int(rng.integers(16, 48))
            mask = np.zeros((64, 64), np.uint8)
            mask[:, edge:] = 1
            line = np.zeros((64, 64), np.uint8)
            line[:, edge - 1 : edge + 1] = 255
            pixels = np.where(mask[..., None] == 1, 200, 40) + rng.integers(0, 30, (64, 64, 3))
            normals = np.where(mask[..., None] == 1, (128, 255, 128), (128, 128, 255))
            for kind, one in (("images", pixels), ("masks", mask), ("edges", line), ("normals", normals)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(one.astype(np.uint8)).save(root / split / kind / f"{number}.png")
    return root


def recipe_for(folder: Path, **changes: object) -> MultiTaskRecipe:
    stated = {
        "method": "lora(rank=2)",
        "tasks": ("semantic", "edges(head=linear_map)", "normals(head=linear_map)"),
        "single": "linear_probe",
        "data": {"source": str(folder)},
        "out": folder.parent / "out",
        "optimisation": {"epochs": 1, "batch": 3, "device": "cpu"},
    }
    return MultiTaskRecipe.model_validate({**stated, **changes})


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """What `vpeft evaluate --json` says of the joint adapter, and its warnings under "said"."""
    capsys.readouterr()
    adapter = folder.parent / "out" / "joint" / "adapter.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        assert main(["evaluate", str(adapter), "--data", str(folder), "--device", "cpu", "--json", *more]) == 0
    told = capsys.readouterr()
    return {**json.loads(told.out), "said": told.err}


def test_all_are_trained_and_compared_on_the_test_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    outcome = compare_tasks(recipe_for(folder), say=said.append)
    record = json.loads((folder.parent / "out" / RECORD).read_text())
    assert record["split"] == "test"
    assert [row["task"] for row in record["tasks"]] == ["semantic", "edges", "normals"]
    gains_of = []
    for row in record["tasks"]:
        single = json.loads((folder.parent / "out" / "single" / row["task"] / "run.json").read_text())
        alone = single["test"]["values"][f"{row['task']}/{row['metric']}"]
        assert row["alone"] == pytest.approx(alone)
        assert row["value"] == pytest.approx(outcome.joint.test.values[f"{row['task']}/{row['metric']}"])
        sign = -1 if row["task"] == "normals" else 1
        gains_of.append(100 * sign * (row["value"] - alone) / alone)
    assert record["delta_m"] == pytest.approx(float(np.mean(gains_of)))
    # the validation scores of the single models choose the epoch
    assert outcome.joint.result.val.leading == "delta_m"
    assert isinstance(outcome.joint.task, MultiTask)
    assert record["passes"] == 1
    assert len(said) == 3
    assert (folder.parent / "out" / PICTURE).stat().st_size > 5000
    again = compare_tasks(recipe_for(folder), say=said.append)
    assert again.record["tasks"] == outcome.record["tasks"]
    # a later evaluation compares with scores of the images that it scores
    assert outcome.joint.test.values["delta_m"] == pytest.approx(record["delta_m"])
    told = {split: evaluated(folder, capsys, "--split", split) for split in ("test", "val")}
    assert told["test"]["values"]["delta_m"] == pytest.approx(record["delta_m"])
    assert told["val"]["values"]["delta_m"] == pytest.approx(outcome.joint.result.val.values["delta_m"])
    other = evaluated(folder, capsys, "--split", "train")
    assert "delta_m" not in other["values"] and "were not measured on them" in other["said"]


def test_without_single_models_there_is_no_delta(folder: Path) -> None:
    outcome = compare_tasks(recipe_for(folder, single="none", tasks=("semantic", "edges(head=linear_map)"), out=None))
    assert outcome.delta_m is None
    assert outcome.joint.result.val.leading == "loss"
    assert [row["alone"] for row in outcome.record["tasks"]] == [None, None]


def test_a_task_without_data_is_named_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(DataError, match="no folder images beside a folder depth"):
        compare_tasks(recipe_for(folder, tasks=("semantic", "depth")))
    assert not (folder.parent / "out").exists()


def test_one_task_or_the_same_twice_is_refused(folder: Path) -> None:
    for tasks in (("semantic",), ("edges", "edges(tolerance=0.1)")):
        with pytest.raises(ValueError, match="two tasks or more, each once"):
            recipe_for(folder, tasks=tasks)


def test_the_picture_has_a_bar_for_each_task_of_each_run() -> None:
    rows = [{"task": "a", "metric": "m", "gain": 2.0}, {"task": "b", "metric": "n", "gain": None}]
    axes = gains({"one": rows, "other": rows}, -1.5).axes[0]
    assert len(axes.patches) == 4
    assert [round(patch.get_height(), 3) for patch in axes.patches] == [2.0, 0.0, 2.0, 0.0]
    assert axes.get_title() == "delta_m -1.50 %"
