"""The fixed few-shot lists of FGVC: shots and seeds by name, lines that are there twice, and what is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.data.pictures import write

from vpeft.data.config import DataConfig
from vpeft.data.datasets import Datasets, open_data
from vpeft.data.problems import DataError


def pets(root: Path) -> Path:
    """Two kinds; lists of one shot (each line twice) and of two, for two seeds."""
    (root / "annotations").mkdir(parents=True)
    for kind in ("cat", "dog"):
        for number in range(6):
            write(root / "images" / f"{kind}_{number}.jpg")
    for seed in (0, 1):
        for shots in (1, 2):
            lines = [
                f"{kind}_{seed + k}.jpg {label}" for label, kind in enumerate(("cat", "dog")) for k in range(shots)
            ]
            lines = [line for line in lines for _ in range(2)] if shots == 1 else lines
            (root / "annotations" / f"train_meta.list.num_shot_{shots}.seed_{seed}").write_text("\n".join(lines) + "\n")
    test = [f"{kind}_{number}.jpg {label}" for label, kind in enumerate(("cat", "dog")) for number in (4, 5)]
    (root / "annotations" / "test_meta.list").write_text("\n".join(test) + "\n")
    (root / "annotations" / "val_meta.list").write_text("cat_3.jpg 0\n")
    return root


def opened(root: Path, **fields: Any) -> Datasets:
    return open_data(DataConfig(source=str(root), **{"val_fraction": 0, **fields}))


@pytest.mark.parametrize(("shots", "seed"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_shots_and_seeds(tmp_path: Path, shots: int, seed: int) -> None:
    data = opened(pets(tmp_path), per_class=shots, seed=seed)
    expected = [f"{kind}_{seed + k}.jpg" for kind in ("cat", "dog") for k in range(shots)]
    assert [item.name for item in data.train.items] == expected
    assert data.val is None and data.test is not None
    assert [(item.name, item.label) for item in data.test.items][1:3] == [("cat_5.jpg", "0"), ("dog_4.jpg", "1")]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    pets(tmp_path)
    with pytest.raises(DataError, match="no list of 16 shots with seed 0.*there are: 1 with seed 0, 1 with seed 1"):
        opened(tmp_path, per_class=16)
    with pytest.raises(DataError, match="--data.per-class"):
        opened(tmp_path)
    (tmp_path / "annotations" / "test_meta.list").write_text("cat_1.jpg\n")
    with pytest.raises(DataError, match="line 1"):
        opened(tmp_path, per_class=1)
    (tmp_path / "annotations" / "test_meta.list").unlink()
    with pytest.raises(DataError, match="has no test_meta.list"):
        opened(tmp_path, per_class=1)
