"""Runs of one engine share what is frozen: fewer images pass the trunk, and every number is that of a run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vpeft.bench.engine import Assignment
from vpeft.bench.key import Identity
from vpeft.bench.protocol import Point
from vpeft.bench.record import RecordedScores
from vpeft.bench.shared_cache import SharedCache
from vpeft.bench.splits import SplitArrays
from vpeft.bench.trainer import VpeftEngine
from vpeft.data.preprocessing import Preprocessing
from vpeft.method_spec import MethodSpec
from vpeft.task import get_task

LABELS = ("a", "b", "c")


def pictures(count: int, seed: int) -> SplitArrays:
    drawn = np.random.default_rng(seed)
    return SplitArrays(drawn.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8), np.arange(count, dtype=np.int64) % 3)


TRAIN, TEST = pictures(13, 0), pictures(8, 1)


class Counting:
    """Counts the images that enter any model's first convolution."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images = 0
        plain = torch.nn.Conv2d.forward

        def forward(module: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
            self.images += len(x) if x.shape[1] == 3 else 0
            return plain(module, x)

        monkeypatch.setattr(torch.nn.Conv2d, "forward", forward)


def run(engine: VpeftEngine, folder: Path, method: str, lr: float, seed: int) -> tuple[list[Any], RecordedScores, Any]:
    identity = Identity(
        purpose="search",
        task="t/t",
        data="d",
        protocol="p@1",
        methods=(MethodSpec(name=method, fields={}),),
        backbone="pocket_vit",
        weights="w",
        optimisation={"epochs": 2, "batch": 4},
        seed=seed,
    )
    assignment = Assignment(identity, Point(lr=lr, weight_decay=1e-4), LABELS, folder)
    trained = engine.train(assignment, TRAIN, None, None)
    history = [
        {name: value for name, value in one.items() if name not in ("seconds", "images_per_second")}
        for one in trained.history
    ]
    costs = trained.costs.model_dump(exclude={"step_seconds", "peak_memory_bytes"})
    return [history, costs], trained.evaluate(TEST, "test"), trained.tuned.adapter_state()


@pytest.mark.parametrize("method", ["linear_probe", pytest.param("partial_k", marks=pytest.mark.slow)])
def test_the_points_of_a_grid_share_the_trunk(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting, points = Counting(monkeypatch), [(1e-3, 0), (1e-2, 1)]
    alone = []
    for number, (lr, seed) in enumerate(points):
        alone.append(run(VpeftEngine(accelerated=False), tmp_path / f"alone{number}", method, lr, seed))
    separately, counting.images = counting.images, 0
    engine = VpeftEngine(accelerated=False)
    for number, (lr, seed) in enumerate(points):
        facts, scores, state = run(engine, tmp_path / f"shared{number}", method, lr, seed)
        assert facts == alone[number][0]
        assert scores == alone[number][1]
        assert all(torch.equal(state[name], tensor) for name, tensor in alone[number][2].items())
    # the second run records neither the 13 images for training nor the 8 for scoring
    assert separately - counting.images == 13 + 8


def test_scores_come_from_records_where_there_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VpeftEngine(accelerated=False)
    _, scores, _ = run(engine, tmp_path / "a", "linear_probe", 1e-3, 0)
    monkeypatch.setattr("vpeft.bench.shared_cache.KEPT_BYTES", 1)  # nothing is kept, hence nothing recorded for scoring
    other = VpeftEngine(accelerated=False)
    assert run(other, tmp_path / "b", "linear_probe", 1e-3, 0)[1] == scores
    assert [len(one.cache._scoring._shelved) for one in (engine, other)] == [1, 0]


def test_sets_are_told_apart_by_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, prepared = SharedCache(), Preprocessing(size=(16, 16))
    task = get_task("classification")(labels=LABELS)
    first = cache.images(TRAIN, task, prepared, "none", 0)
    again = SplitArrays(TRAIN.pixels.copy(), TRAIN.labels.copy())
    assert cache.images(again, task, prepared, "none", 5) is first
    again.labels[0] = 2
    assert cache.images(again, task, prepared, "none", 0) is not first
    assert cache.images(TRAIN, task, Preprocessing(size=(16, 24)), "none", 0) is not first
    assert cache.images(TRAIN, task, prepared, "flip", 0) is not cache.images(TRAIN, task, prepared, "flip", 0)
    monkeypatch.setattr("vpeft.bench.shared_cache.ALL_BYTES", 1)
    cache.images(TEST, task, prepared, "none", 0)
    assert len(cache._sets) == 1
