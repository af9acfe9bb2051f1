"""The head, the loss and the metrics, against numbers worked out by hand or in plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from vpeft.tasks.classification import Classification, MeanPerClass, TooFewLabels
from vpeft.tasks.task import Task

LABELS = ["ant", "bee", "cat"]


def test_is_a_task() -> None:
    task = Classification(LABELS)
    assert isinstance(task, Task)
    assert (task.name, task.labels, task.leading) == ("classification", tuple(LABELS), "top1")


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", "b", "a"]])
def test_labels(labels: list[str]) -> None:
    with pytest.raises(TooFewLabels, match="two or more different"):
        Classification(labels)


def test_head() -> None:
    torch.manual_seed(0)
    head = Classification([str(number) for number in range(200)]).head(384)
    assert head.weight.shape == (200, 384)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert head.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert not head.bias.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss(smoothing: float) -> None:
    outputs = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    target = torch.tensor([0, 1])
    expected = 0.0
    for row, right in zip(outputs.tolist(), target.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        for index, value in enumerate(row):
            share = (1 - smoothing) * (index == right) + smoothing / 3
            expected -= share * math.log(math.exp(value) / total) / 2
    task = Classification(LABELS)
    assert task.loss(outputs, target, label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-6)
    shares = torch.nn.functional.one_hot(target, 3).float()
    assert task.loss(outputs, shares, label_smoothing=smoothing).item() == pytest.approx(expected, rel=1e-6)


def test_loss_in_half_precision_is_computed_in_single() -> None:
    outputs = torch.tensor([[200.0, 1.0, 0.0]], dtype=torch.bfloat16)
    loss = Classification(LABELS).loss(outputs, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(199.0)


def _logits(predicted: list[int], count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predicted), count).float()


def test_mean_per_class_ignores_classes_without_images() -> None:
    """ant 1 of 1, bee 1 of 2, none of cat: 0.75. Counting cat, which one bee is taken for, would give 0.5."""
    metric = Classification(LABELS).metric()
    metric.update(_logits([0, 1, 2], 3), torch.tensor([0, 1, 1]))
    scores = metric.compute()
    assert set(scores) == {"top1", "mean_per_class"}
    assert scores["mean_per_class"].item() == pytest.approx(0.75)
    assert scores["top1"].item() == pytest.approx(2 / 3)


def test_metrics_over_batches_equal_metrics_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(97, 10, generator=generator)
    target = (torch.rand(97, generator=generator) ** 2 * 10).long()
    metric = Classification([str(number) for number in range(10)]).metric()
    for start in range(0, 97, 16):
        metric.update(outputs[start : start + 16], target[start : start + 16])
    scores = {name: value.item() for name, value in metric.compute().items()}
    right = (outputs.argmax(1) == target).tolist()
    by_class: dict[int, list[bool]] = {}
    for label, hit in zip(target.tolist(), right, strict=True):
        by_class.setdefault(label, []).append(hit)
    assert scores["top1"] == pytest.approx(sum(right) / 97)
    mean = sum(sum(hits) / len(hits) for hits in by_class.values()) / len(by_class)
    assert scores["mean_per_class"] == pytest.approx(mean)
    five = outputs.topk(5, dim=1).indices.tolist()
    assert scores["top5"] == pytest.approx(sum(t in row for t, row in zip(target.tolist(), five, strict=True)) / 97)


def test_metric_starts_afresh() -> None:
    metric = MeanPerClass(3)
    metric.update(_logits([0], 3), torch.tensor([1]))
    assert metric.compute().item() == 0
    metric.reset()
    metric.update(_logits([2], 3), torch.tensor([2]))
    assert metric.compute().item() == 1
