"""Runs that read alike go together, and what keeps others apart is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.preprocessing import Preprocessing
from vpeft.task import get_task
from vpeft.tasks.classification import Classification
from vpeft.training.grouping import DataReading, Opened, passes, said


def reading(run: str, size: int = 32, **data: Any) -> DataReading:
    return DataReading(
        run, DataConfig.model_validate({"source": "photos", **data}), Preprocessing(size=(size, size)), Classification()
    )


def test_runs_that_read_alike_go_together() -> None:
    alike = [reading("a"), reading("b", workers=2), reading("c")]
    assert passes(alike) == [[0, 1, 2]]
    assert said(alike, passes(alike)) == ["3 runs in one pass: a, b, c"]


def test_what_keeps_runs_apart_is_said_against_the_closest() -> None:
    apart = [reading("a"), reading("b", 48, source="x", seed=1, val_fraction=0), reading("c"), reading("d", 48)]
    apart.append(reading("e", 48, image_size=48))
    grouped = passes(apart)
    assert grouped == [[0, 2], [1], [3], [4]]
    lines = said(apart, grouped)
    assert lines[:2] == ["5 runs in 4 passes, one after the other", "pass 1: a, c"]
    assert lines[2].startswith("pass 2: b (not with a, c: data.source is 'x' here and 'photos' there; ")
    assert lines[2].endswith("; and 1 more)")
    assert lines[3] == "pass 3: d (not with a, c: preprocessing.size is (48, 48) here and (32, 32) there)"
    assert lines[4] == "pass 4: e (not with d: data.image_size is 48 here and not set there)"


def test_a_data_set_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        file = tmp_path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(file)
    calls: list[DataConfig] = []

    def counted(config: DataConfig) -> Datasets:
        calls.append(config)
        return open_data(config)

    monkeypatch.setattr("vpeft.training.grouping.open_data", counted)
    images, config = Opened(), DataConfig(source=str(tmp_path), val_fraction=0.25, test_fraction=0)
    task = get_task("classification")()
    first = images(config, Preprocessing(size=(32, 32)), task)
    assert images(config.model_copy(update={"workers": 1}), Preprocessing(size=(32, 32)), task).train is first.train
    small = images(config, Preprocessing(size=(16, 16)), task)
    assert (first.train[0][0].shape, small.train[0][0].shape) == ((3, 32, 32), (3, 16, 16))
    assert len(calls) == 1
