"""Normals, edges, what stands out and parts: losses and scores restated, targets refused, and each alone in a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import tiny_vit
from torch import Tensor

import vpeft
from vpeft.batch import Batch
from vpeft.methods import LoRA
from vpeft.task import Task, UnsuitableTargets
from vpeft.tasks.edges import Edges
from vpeft.tasks.human_parts import HumanParts
from vpeft.tasks.saliency import Saliency
from vpeft.tasks.surface_normals import SurfaceNormals
from vpeft.training.optimisation import Optimisation

OPTIONS: dict[type[Task], dict[str, Any]] = {
    SurfaceNormals: {"head": "linear_map"},
    Edges: {"head": "linear_map"},
    Saliency: {"head": "linear_map"},
    HumanParts: {"labels": ("none", "head", "body")},
}


def batch_of(targets: Tensor) -> Batch:
    return Batch(torch.zeros(len(targets), 3, *targets.shape[-2:]), targets)


def normals(count: int, side: int = 8) -> Tensor:
    found = torch.nn.functional.normalize(torch.randn(count, 3, side, side), dim=1)
    found[:, :, :2] = math.nan
    return found


def test_normals_restated() -> None:
    task, targets, outputs = SurfaceNormals(), normals(3), torch.randn(3, 3, 8, 8)
    metric = task.metric()
    metric.update(outputs[:2], batch_of(targets[:2]))
    metric.update(outputs[2:], batch_of(targets[2:]))
    angles, off = [], []
    for b in range(3):
        for i in range(2, 8):
            for j in range(8):
                said = outputs[b, :, i, j].double().numpy()
                said = said / np.sqrt((said**2).sum())
                true = targets[b, :, i, j].double().numpy()
                angles.append(math.degrees(math.acos(np.clip((said * true).sum(), -1, 1))))
                off += list(np.abs(said - true))
    values = metric.compute()
    assert values["mean_angle"] == pytest.approx(np.mean(angles), rel=1e-4)
    assert values["rmse_angle"] == pytest.approx(np.sqrt(np.mean(np.square(angles))), rel=1e-4)
    assert values["within_30"] == pytest.approx(np.mean(np.array(angles) < 30))
    assert float(task.loss(outputs, batch_of(targets))["l1"]) == pytest.approx(np.mean(off), rel=1e-5)


def test_edges_restated() -> None:
    task = Edges(tolerance=0.09)  # one pixel of a picture of 8 x 8
    targets = (torch.rand(2, 8, 8) > 0.8).long()
    targets[:, 0] = 255
    outputs = torch.randn(2, 1, 8, 8) * 3
    metric = task.metric()
    metric.update(outputs, batch_of(targets))
    shares = outputs[:, 0].sigmoid().numpy()
    true, counted = targets.numpy() == 1, targets.numpy() != 255

    def near(one: Any, b: int, i: int, j: int) -> bool:
        return bool(one[b, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].any())

    best = 0.0
    for step in range(1, 20):
        said = (shares >= step / 20) & counted
        places = list(zip(*np.nonzero(said), strict=True))
        precision = np.mean([near(true, *place) for place in places]) if places else 0.0
        recall = np.mean([near(said, *place) for place in zip(*np.nonzero(true), strict=True)])
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-12))
    assert metric.compute()["ods_f"] == pytest.approx(best, rel=1e-6)
    p, y = outputs[:, 0].sigmoid()[counted], targets[counted].float()
    expected = -(0.95 * y * p.log() + 0.05 * (1 - y) * (1 - p).log()).mean()
    assert float(task.loss(outputs, batch_of(targets))["balanced_bce"]) == pytest.approx(float(expected), rel=1e-5)


def test_saliency_restated() -> None:
    task = Saliency()
    targets = (torch.rand(3, 8, 8) > 0.7).long()
    targets[2] = 0
    outputs = torch.randn(3, 1, 8, 8)
    metric = task.metric()
    metric.update(outputs, batch_of(targets))
    shares, true = outputs[:, 0].sigmoid().numpy(), targets.numpy() == 1
    ious, scores = [], []
    for threshold in np.linspace(0.2, 0.9, 15, dtype=np.float32):
        said = shares >= threshold
        each = [(s & t).sum() / (s | t).sum() if (s | t).any() else 1.0 for s, t in zip(said, true, strict=True)]
        ious.append(np.mean(each))
        right = (said & true).sum()
        precision, recall = right / max(said.sum(), 1), right / true.sum()
        scores.append(1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    values = metric.compute()
    assert values["miou"] == pytest.approx(max(ious), rel=1e-6)
    assert values["max_f"] == pytest.approx(max(scores), rel=1e-6)
    p, y = outputs[:, 0].sigmoid(), targets.float()
    w = 1 - y.mean()
    expected = -(w * y * p.log() + (1 - w) * (1 - y) * (1 - p).log()).mean()
    assert float(task.loss(outputs, batch_of(targets))["balanced_bce"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_picture_without_people_counts_nowhere() -> None:
    task = HumanParts(labels=("none", "head"))
    targets = torch.zeros(2, 4, 4, dtype=torch.int64)
    targets[0, :2] = 1
    targets[1] = 255
    outputs = torch.randn(2, 2, 4, 4)
    metric, alone = task.metric(), task.metric()
    metric.update(outputs, batch_of(targets))
    alone.update(outputs[:1], batch_of(targets[:1]))
    assert metric.compute()["miou"] == alone.compute()["miou"]
    whole = task.loss(outputs, batch_of(targets))["cross_entropy"]
    torch.testing.assert_close(whole, task.loss(outputs[:1], batch_of(targets[:1]))["cross_entropy"])


def target_for(kind: type[Task], image: Tensor) -> Tensor:
    if kind is SurfaceNormals:
        return torch.nn.functional.normalize(image, dim=0)
    return (image[0] > 0).long()


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_each_learns_alone_and_predicts(kind: type[Task]) -> None:
    torch.manual_seed(0)
    images = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), size=32)
    samples = [(image, target_for(kind, image)) for image in images]
    task = kind(**OPTIONS[kind])
    tuned = vpeft.tune(tiny_vit(), LoRA(rank=2), task=task)
    settings = Optimisation(epochs=6, batch=4, lr=2e-2, warmup=0)
    result = vpeft.fit(tuned, samples, samples, optimisation=settings, progress=False)
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert task.leading.name in result.val.values
    with torch.no_grad():
        said = task.predictions(tuned.eval()(images[:2]), Batch(images[:2]))
    assert said[0].map is not None
    assert said[0].map.shape == (32, 32)
    assert len(task.truth(task.collate(samples[:2]))) == 2


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (SurfaceNormals, torch.zeros(8, 8), "learns surface normals.*semantic_segmentation"),
        (Edges, torch.full((8, 8), 3), "holds 3, and the task edges learns 0 and 1"),
        (Saliency, torch.zeros(3, 8, 8), "learns maps of what stands out"),
        (Edges, 1, "learns edge maps"),
    ],
)
def test_other_targets_are_refused(kind: type[Task], target: Any, message: str) -> None:
    task = kind(**OPTIONS[kind])
    with pytest.raises(UnsuitableTargets, match=message):
        vpeft.fit(
            vpeft.tune(tiny_vit(), LoRA(rank=2), task=task),
            [(torch.zeros(3, 32, 32), target)] * 4,
            optimisation=Optimisation(epochs=1, batch=2),
            progress=False,
        )
