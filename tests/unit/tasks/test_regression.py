"""Regression against scikit-learn, SciPy and plain Python."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from tests.models import tiny_vit
from torch import Tensor
from torch.utils.data import TensorDataset

from vpeft import describe
from vpeft.batch import Batch
from vpeft.heads.coral import CoralHead
from vpeft.task import Leading, UnsuitableTargets, get_task
from vpeft.tasks.regression import Regression, UnknownOutputs

IMAGES = torch.zeros(6, 3, 4, 4)


class Data:
    def __init__(self, targets: Any, labels: tuple[str, ...] | None = None) -> None:
        self.targets, self.labels = targets, labels

    def __len__(self) -> int:
        return len(self.targets)


def _draw(numbers: int = 2, count: int = 60) -> tuple[Tensor, Tensor]:
    """Outputs near the standardised targets, and targets far from 0 and 1."""
    draw = torch.Generator().manual_seed(0)
    standard = torch.randn(count, numbers, generator=draw)
    return standard + 0.5 * torch.randn(count, numbers, generator=draw), 2000 + 30 * standard


def _scores(task: Regression, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    metric = task.metric()
    for first in range(0, len(outputs), 25):
        metric.update(outputs[first : first + 25], Batch(None, targets[first : first + 25]))
    found: dict[str, Any] = metric.compute()
    return found


def test_is_a_task() -> None:
    task = Regression(labels=("age",), mean=(3.0,), std=(1.0,))
    assert get_task("regression") is Regression
    assert (task.target_kind, task.leading) == ("values", Leading("mae", higher_is_better=False))
    assert Regression(**json.loads(json.dumps(task.model_dump(mode="json")))) == task


@pytest.mark.parametrize(
    "targets",
    [[1.0, 2.0, 6.0], torch.tensor([[1.0], [2], [6]]), [torch.tensor([one]) for one in (1.0, 2, 6)], [1, 2, 6]],
)
def test_standardisation_of_the_training_targets(targets: Any) -> None:
    task = Regression().bind(Data(targets))
    assert task.mean == pytest.approx((3.0,)) and task.std == pytest.approx(((14 / 3) ** 0.5,))
    assert task.bind(Data([100.0, 200.0])) is task
    plain = Regression(standardise=False).bind(Data(targets))
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))


def test_a_number_that_is_always_the_same_is_not_divided_by_zero() -> None:
    assert Regression().bind(Data([[1.0, 5.0], [3.0, 5.0]])).std == (1.0, 1.0)


def test_head() -> None:
    backbone = describe(tiny_vit())
    assert Regression().bind(Data([[1.0, 2.0]] * 3)).head(backbone, 48)(torch.zeros(2, 48)).shape == (2, 2)
    levels = Regression(ordinal=True).bind(Data([3, 4, 7]))
    assert (levels.lowest, levels.levels) == (3, 5)
    assert levels.head(backbone, 48)(torch.zeros(2, 48)).shape == (2, 4)
    with pytest.raises(UnknownOutputs, match="task.bind"):
        Regression().head(backbone, 48)


@pytest.mark.parametrize("kind", ["l1", "l2", "huber"])
def test_loss(kind: Any) -> None:
    outputs, targets = _draw()
    task = Regression(loss_kind=kind, delta=0.7).bind(TensorDataset(torch.zeros(60, 1), targets))
    error = (outputs - (targets - targets.mean(0)) / targets.std(0, unbiased=False)).abs()
    expected = {
        "l1": error,
        "l2": error**2,
        "huber": torch.where(error < 0.7, 0.5 * error**2, 0.7 * (error - 0.35)),
    }[kind].mean()
    torch.testing.assert_close(task.loss(outputs, Batch(None, targets)), {kind: expected}, rtol=1e-4, atol=1e-5)


def test_loss_and_monitor_of_one_number_take_a_vector_of_targets() -> None:
    outputs, targets = _draw(1)
    task = Regression().bind(Data(targets))
    assert task.loss(outputs, Batch(None, targets[:, 0]))["l2"].equal(task.loss(outputs, Batch(None, targets))["l2"])
    error = (outputs * task.std[0] + task.mean[0] - targets).abs().sum()
    assert task.monitor(outputs, Batch(None, targets[:, 0]))["mae"].item() == pytest.approx(error.item(), rel=1e-5)


@pytest.mark.parametrize("numbers", [1, 2])
def test_scores_are_in_the_targets_own_units(numbers: int) -> None:
    outputs, targets = _draw(numbers)
    task = Regression(labels=("x", "y")[:numbers]).bind(TensorDataset(torch.zeros(60, 1), targets))
    said = (outputs.double() * torch.tensor(task.std).double() + torch.tensor(task.mean).double()).numpy()
    wanted = targets.double().numpy()
    scores = _scores(task, outputs, targets)
    assert scores["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(wanted, said), rel=1e-6)
    rmse = sum(sklearn_metrics.root_mean_squared_error(wanted[:, k], said[:, k]) for k in range(numbers)) / numbers
    assert scores["rmse"] == pytest.approx(rmse, rel=1e-6)
    assert scores["r2"] == pytest.approx(sklearn_metrics.r2_score(wanted, said), rel=1e-6)
    ranks = [stats.spearmanr(wanted[:, k], said[:, k]).statistic for k in range(numbers)]
    assert scores["spearman"] == pytest.approx(sum(ranks) / numbers, rel=1e-6)
    assert [row["name"] for row in scores["per_value"]] == ["x", "y"][:numbers]
    assert scores["per_value"][-1]["spearman"] == pytest.approx(ranks[-1], rel=1e-6)
    json.dumps(scores)


def test_scores_that_are_not_defined_are_left_out() -> None:
    task = Regression(mean=(0.0,), std=(1.0,))
    assert set(_scores(task, torch.ones(1, 1), torch.zeros(1))) == {"mae", "rmse", "per_value"}
    assert set(_scores(task, torch.rand(4, 1), torch.zeros(4))) == {"mae", "rmse", "per_value"}
    assert set(_scores(task, torch.ones(4, 1), torch.rand(4))) == {"mae", "rmse", "r2", "per_value"}


def test_scores_of_large_numbers_keep_their_digits() -> None:
    task = Regression(mean=(1e7,), std=(1.0,))
    targets = torch.tensor([0.0, 1, 2, 3], dtype=torch.float64) + 1e7
    scores = _scores(task, torch.tensor([[0.5], [1], [2], [3]]), targets)
    assert scores["mae"] == pytest.approx(0.125) and scores["r2"] == pytest.approx(1 - 0.25 / 5)


def test_predictions() -> None:
    task = Regression(labels=("x", "y"), mean=(10.0, 0.0), std=(2.0, 1.0))
    (found,) = task.predictions(torch.tensor([[1.5, -1.0]]), Batch(None, None, ("a.png",)))
    assert found.id == "a.png" and found.rows == ({"name": "x", "value": 13.0}, {"name": "y", "value": -1.0})
    assert found.values == {"values": {"x": 13.0, "y": -1.0}}
    (found,) = Regression(mean=(10.0,), std=(2.0,)).predictions(torch.tensor([[1.5]]), Batch(None))
    assert found.rows == ({"name": "value", "value": 13.0},)


def test_report() -> None:
    outputs, targets = _draw()
    task = Regression(labels=("x", "y")).bind(Data(targets))
    ((_, columns, rows),) = task.report(_scores(task, outputs, targets))
    assert columns[:2] == ("name", "mae") and [row[0] for row in rows] == ["x", "y"]


# -- levels in order ---------------------------------------------------------------------------------------------------


def test_ordinal_loss() -> None:
    """Levels 1 to 4: above 1?, above 2?, above 3?"""
    task = Regression(ordinal=True, lowest=1, levels=4)
    outputs, levels = torch.randn(5, 3), torch.tensor([1, 2, 3, 4, 2])
    expected = 0.0
    for row, level in zip(outputs.sigmoid().tolist(), levels.tolist(), strict=True):
        for k, probability in enumerate(row):
            there = level > k + 1
            expected -= torch.tensor(probability if there else 1 - probability).log().item() / 15
    assert task.loss(outputs, Batch(None, levels))["ordinal"].item() == pytest.approx(expected, rel=1e-5)
    assert task.loss(outputs, Batch(None, levels[:, None].float()))["ordinal"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_ordinal_scores_and_predictions() -> None:
    task = Regression(ordinal=True, lowest=1, levels=4)
    outputs = torch.tensor([[5.0, -1, -2], [2, 1, 1], [-1, -2, -3], [1, 1, -9]])
    scores = _scores(task, outputs, torch.tensor([2, 4, 3, 4]))
    assert scores["mae"] == pytest.approx((0 + 0 + 2 + 1) / 4) and scores["accuracy"] == 0.5
    predictions = task.predictions(outputs, Batch(None))
    assert [one.rows[0]["value"] for one in predictions] == [2, 4, 1, 3]
    assert isinstance(predictions[0].rows[0]["value"], int)
    assert task.monitor(outputs, Batch(None, torch.tensor([2, 4, 3, 4])))["mae"].item() == 3


def test_coral() -> None:
    head = Regression(ordinal=True, lowest=0, levels=5, head_kind="coral").head(describe(tiny_vit()), 48)
    assert isinstance(head, CoralHead)
    features = torch.randn(7, 48)
    weight = head.direction.weight[0]
    expected = torch.stack([features @ weight + bias for bias in (1.0, 0.75, 0.5, 0.25)], 1)
    torch.testing.assert_close(head(features), expected)
    # In order for every sample, so that no level is skipped.
    assert (head(100 * features).diff(dim=1) <= 0).all()


# -- targets of another kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "targets", "said"),
    [
        ({}, ["cat"] * 6, "the word 'cat', and the task regression learns real numbers"),
        ({}, torch.zeros(6, 4, 4), "a map.*semantic_segmentation"),
        ({}, [1.0, None], "no target"),
        ({}, torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        ({"mean": (0.0,), "std": (1.0,)}, torch.rand(6, 2), "a vector of 2 numbers, and 1 is learnt"),
        ({"ordinal": True}, torch.tensor([1.0, 2.5]), "2.5, and ordinal regression learns whole numbers"),
        ({"ordinal": True, "lowest": 1, "levels": 3}, torch.tensor([1, 4]), "A target is 4.*levels 1 to 3"),
    ],
)
def test_targets_that_do_not_fit(options: dict[str, Any], targets: Any, said: str) -> None:
    with pytest.raises(UnsuitableTargets, match=said):
        Regression(**options).check(Data(targets))


def test_data_that_do_not_tell_their_targets() -> None:
    with pytest.raises(UnsuitableTargets, match="`targets`, or state mean and std"):
        Regression().check(object())
    Regression(mean=(0.0,), std=(1.0,)).check(object())


def test_batches() -> None:
    task = Regression().bind(Data([1.0, 2.0, 6.0]))
    batch = task.collate([(IMAGES[0], 1.0), (IMAGES[1], 2.5)])
    as_rows = batch.with_(targets=torch.tensor([[1.0], [2.5]]))
    assert task.loss(torch.ones(2, 1), batch) == task.loss(torch.ones(2, 1), as_rows)
    lists = task.collate([(IMAGES[0], [1.0]), (IMAGES[1], [2.5])])
    assert task.loss(torch.ones(2, 1), lists) == task.loss(torch.ones(2, 1), as_rows)
    task.check_batch(torch.zeros(2, 1), batch)
    with pytest.raises(UnsuitableTargets, match="The model has 3 outputs, and the targets need 1"):
        task.check_batch(torch.zeros(2, 3), batch)
    with pytest.raises(UnsuitableTargets, match="The model has 3 outputs, and the targets need 4"):
        Regression(ordinal=True, levels=5).check_batch(torch.zeros(2, 3), Batch(IMAGES[:2], torch.tensor([0, 4])))
    assert task.collate([(IMAGES[0], None)]).targets is None
