"""Several labels against scikit-learn and plain Python."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from tests.models import tiny_vit
from torch import Tensor
from torch.utils.data import TensorDataset

from vpeft import describe
from vpeft.batch import Batch
from vpeft.task import BadOption, Leading, UnsuitableTargets, get_task
from vpeft.tasks.multilabel import MultiLabel, NoLabels, best_threshold

LABELS = ("sun", "sea", "sand")
IMAGES = torch.zeros(6, 3, 4, 4)


class Data:
    def __init__(self, targets: Any, labels: tuple[str, ...] | None = None) -> None:
        self.targets, self.labels = targets, labels

    def __len__(self) -> int:
        return len(self.targets)


def _draw(count: int = 80, labels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    there = (torch.rand(count, labels, generator=draw) < torch.tensor([0.5, 0.2, 0.7, 0.1])[:labels]).float()
    return torch.randn(count, labels, generator=draw) + there, there


def _scores(task: MultiLabel, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    metric = task.metric()
    for first in range(0, len(outputs), 32):
        metric.update(outputs[first : first + 32], Batch(None, targets[first : first + 32]))
    found: dict[str, Any] = metric.compute()
    return found


def test_is_a_task() -> None:
    task = MultiLabel(labels=LABELS)
    assert get_task("multilabel") is MultiLabel
    assert (task.target_kind, task.leading) == ("labels", Leading("map"))
    assert MultiLabel(**json.loads(json.dumps(task.model_dump(mode="json")))) == task
    with pytest.raises(BadOption, match="positive_weights"):
        MultiLabel(positive_weights=(1.0, -1.0))


def test_head() -> None:
    assert MultiLabel(labels=LABELS).head(describe(tiny_vit()), 48)(torch.zeros(2, 48)).shape == (2, 3)
    with pytest.raises(NoLabels, match="task.bind"):
        MultiLabel().head(describe(tiny_vit()), 48)


def test_loss() -> None:
    outputs, there = _draw()
    probabilities = outputs.double().sigmoid()
    each = -(there * probabilities.log() + (1 - there) * (1 - probabilities).log())
    loss = MultiLabel(labels=LABELS).loss(outputs.half().float(), Batch(None, there))
    assert loss["binary_cross_entropy"].item() == pytest.approx(each.mean().item(), rel=1e-3)
    weights = torch.tensor([1.0, 4.0, 0.5])
    each = -(weights * there * probabilities.log() + (1 - there) * (1 - probabilities).log())
    weighted = MultiLabel(labels=LABELS, positive_weights=(1.0, 4.0, 0.5)).loss(outputs, Batch(None, there))
    assert weighted["binary_cross_entropy"].item() == pytest.approx(each.mean().item(), rel=1e-5)


@pytest.mark.parametrize("as_list", [False, True])
def test_balanced_weights(as_list: bool) -> None:
    there = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]])
    data = Data(list(there), LABELS) if as_list else TensorDataset(IMAGES[:4], there)
    task = MultiLabel(positive_weights="balanced").bind(data)
    assert task.weights == pytest.approx((1 / 3, 3.0, 1.0))
    assert task.labels == (LABELS if as_list else ())


@pytest.mark.parametrize("labels", [1, 3, 4])
def test_scores_are_those_of_scikit_learn(labels: int) -> None:
    outputs, there = _draw(labels=labels)
    thresholds = (0.5, 0.4, 0.7, 0.3)[:labels]
    scores = _scores(MultiLabel(thresholds=thresholds), outputs, there)
    probabilities = outputs.double().sigmoid()
    stated = (probabilities >= torch.tensor(thresholds, dtype=torch.float64)).numpy()
    precisions = [sklearn_metrics.average_precision_score(there[:, k], probabilities[:, k]) for k in range(labels)]
    assert scores["map"] == pytest.approx(sum(precisions) / labels, abs=1e-6)
    truth = there.numpy() > 0
    per_label = [sklearn_metrics.f1_score(truth[:, k], stated[:, k]) for k in range(labels)]
    assert scores["macro_f1"] == pytest.approx(sum(per_label) / labels)
    assert scores["micro_f1"] == pytest.approx(sklearn_metrics.f1_score(truth.ravel(), stated.ravel()))
    assert scores["loss"] == pytest.approx(sklearn_metrics.log_loss(truth.ravel(), probabilities.ravel()))
    for k, row in enumerate(scores["per_label"]):
        assert (row["label"], row["samples"], row["threshold"]) == (str(k), int(truth[:, k].sum()), thresholds[k])
        assert (row["average_precision"], row["f1"]) == pytest.approx((precisions[k], per_label[k]), abs=1e-6)
    json.dumps(scores)


def test_labels_that_are_never_there_are_left_out() -> None:
    outputs, there = _draw()
    there[:, 1] = 0
    scores = _scores(MultiLabel(labels=LABELS), outputs, there)
    assert scores["per_label"][1]["average_precision"] is None
    known = [scores["per_label"][k]["average_precision"] for k in (0, 2)]
    assert scores["map"] == pytest.approx(sum(known) / 2)
    assert math.isnan(_scores(MultiLabel(), outputs, torch.zeros_like(there))["map"])


def test_metric_starts_afresh() -> None:
    outputs, there = _draw()
    metric = MultiLabel(labels=LABELS).metric()
    metric.update(-outputs, Batch(None, there))
    metric.reset()
    metric.update(outputs, Batch(None, there))
    assert metric.compute() == _scores(MultiLabel(labels=LABELS), outputs, there) | {
        "loss": pytest.approx(_scores(MultiLabel(labels=LABELS), outputs, there)["loss"])
    }


def test_the_best_threshold() -> None:
    draw = torch.Generator().manual_seed(3)
    for _ in range(8):
        probabilities = (torch.rand(25, generator=draw) * 10).round() / 10
        there = torch.rand(25, generator=draw) < probabilities / 2 + 0.1
        found = best_threshold(probabilities.double(), there, 0.5)
        best = max(
            sklearn_metrics.f1_score(there, probabilities >= threshold / 100 - 0.001, zero_division=0)
            for threshold in range(101)
        )
        assert sklearn_metrics.f1_score(there, probabilities >= found) == pytest.approx(best)
    assert best_threshold(torch.rand(4), torch.zeros(4, dtype=torch.bool), 0.4) == 0.4


def test_thresholds_are_chosen_on_validation_samples() -> None:
    outputs, there = _draw(200)
    batches = [(outputs[i : i + 50] - 2, Batch(None, there[i : i + 50])) for i in range(0, 200, 50)]
    task = MultiLabel(labels=LABELS, choose_thresholds=True).calibrated(lambda: batches)
    assert len(task.thresholds) == 3 and all(0 < one < 0.5 for one in task.thresholds)
    after, before = (_scores(one, outputs - 2, there) for one in (task, MultiLabel(labels=LABELS)))
    assert after["macro_f1"] > before["macro_f1"] + 0.1 and after["map"] == before["map"]
    plain = MultiLabel(labels=LABELS)
    assert plain.calibrated(lambda: 1 / 0) is plain  # type: ignore[arg-type, return-value]


def test_predictions() -> None:
    task = MultiLabel(labels=LABELS, thresholds=(0.5, 0.2, 0.5))
    outputs = torch.tensor([[2.0, -1.0, -3.0], [-5.0, -5.0, -5.0]])
    first, second = task.predictions(outputs, Batch(None, None, ("x", "y")))
    assert [row["label"] for row in first.rows] == ["sun", "sea"] and second.rows == ()
    assert first.rows[1]["probability"] == pytest.approx(1 / (1 + math.e))
    assert second.values["probabilities"]["sand"] == pytest.approx(1 / (1 + math.exp(5)))


def test_report() -> None:
    outputs, there = _draw()
    ((_, columns, rows),) = MultiLabel(labels=LABELS).report(_scores(MultiLabel(labels=LABELS), outputs, there))
    assert columns[0] == "label" and [row[0] for row in rows] == list(LABELS)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 1, 2, 0, 1, 2]), "whole number 0.*classification"),
        (torch.rand(6, 3), "vector of 3 numbers.*regression"),
        (torch.zeros(6, 4, 4, dtype=torch.int64), "map.*semantic_segmentation"),
        (["sun"] * 6, "word 'sun'"),
        ([torch.ones(2)] * 6, "2 zeros and ones, and there are 3 labels"),
        ([[0, 2, 1]] * 6, "vector of 3"),
    ],
)
def test_targets_that_do_not_fit(targets: Any, said: str) -> None:
    with pytest.raises(UnsuitableTargets, match=said):
        MultiLabel(labels=LABELS).check(Data(targets))
    with pytest.raises(UnsuitableTargets):
        MultiLabel(labels=LABELS).check_batch(torch.zeros(6, 3), Batch(IMAGES, targets))


def test_targets_that_fit() -> None:
    task = MultiLabel(labels=LABELS)
    task.check(Data([torch.tensor([0.0, 1, 1])] * 4))
    task.check(Data([[0, 1, 1], [1, 0, 0]]))
    batch = task.collate([(IMAGES[0], [0, 1, 1]), (IMAGES[1], (1, 0, 0))])
    as_tensor = batch.with_(targets=torch.tensor([[0.0, 1, 1], [1, 0, 0]]))
    outputs = torch.randn(2, 3)
    task.check_batch(outputs, batch)
    assert task.loss(outputs, batch) == task.loss(outputs, as_tensor)
    assert task.monitor(outputs, batch) == task.monitor(outputs, as_tensor)
    with pytest.raises(UnsuitableTargets, match="3 zeros and ones, and the model has 4 outputs"):
        task.check_batch(torch.zeros(2, 4), batch)
    with pytest.raises(UnsuitableTargets, match="`targets`"):
        MultiLabel(positive_weights="balanced").check(object())
