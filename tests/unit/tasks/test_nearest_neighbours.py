"""Scores of retrieval against pytorch-metric-learning's calculator and against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch.nn import functional

from vpeft.tasks.nearest_neighbours import retrieval_scores

CALCULATOR = AccuracyCalculator(
    include=("precision_at_1", "mean_average_precision_at_r", "r_precision"),
    k="max_bin_count",
    device=torch.device("cpu"),
    knn_func=CustomKNN(CosineSimilarity()),
)


def some(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randint(classes, (count,), generator=draw)
    centres = torch.randn(classes, 6, generator=draw)
    points = centres[numbers] + torch.randn(count, 6, generator=draw)
    return functional.normalize(points, dim=1), numbers


@pytest.mark.parametrize("at_once", [2**24, 1000, 1])
@pytest.mark.parametrize("classes", [3, 40])
def test_one_set_equals_the_calculator(classes: int, at_once: int) -> None:
    points, numbers = some(90, classes, classes)
    found = retrieval_scores(points, numbers, points, numbers, (1, 5), own=torch.arange(90), at_once=at_once)
    told = CALCULATOR.get_accuracy(points, numbers)
    assert found["recall_at_1"] == pytest.approx(told["precision_at_1"], abs=1e-12)
    assert found["map_at_r"] == pytest.approx(told["mean_average_precision_at_r"], abs=1e-12)
    assert found["r_precision"] == pytest.approx(told["r_precision"], abs=1e-12)
    alone = int((numbers.bincount()[numbers] == 1).sum())
    assert found["queries"] == 90 - alone and (classes == 3 or alone > 0)


def test_queries_and_a_gallery_equal_the_calculator() -> None:
    points, numbers = some(120, 12, 0)
    found = retrieval_scores(points[:50], numbers[:50], points[50:], numbers[50:], (1, 10))
    told = CALCULATOR.get_accuracy(points[:50], numbers[:50], points[50:], numbers[50:], ref_includes_query=False)
    assert found["recall_at_1"] == pytest.approx(told["precision_at_1"], abs=1e-12)
    assert found["map_at_r"] == pytest.approx(told["mean_average_precision_at_r"], abs=1e-12)


def test_recall_at_k_counts_by_hand() -> None:
    points, numbers = some(60, 8, 3)
    found = retrieval_scores(points, numbers, points, numbers, (1, 2, 4, 8), own=torch.arange(60))
    for k in (1, 2, 4, 8):
        hits = []
        for row in range(60):
            order = sorted((j for j in range(60) if j != row), key=lambda j: -float(points[row] @ points[j]))
            hits.append(any(numbers[j] == numbers[row] for j in order[:k]))
        assert found[f"recall_at_{k}"] == pytest.approx(sum(hits) / 60)


def test_a_model_that_maps_all_to_one_point_finds_nothing() -> None:
    points, numbers = torch.ones(12, 4) / 2, torch.arange(12) // 3
    found = retrieval_scores(points, numbers, points, numbers, (1, 8, 10), own=torch.arange(12))
    assert found["recall_at_1"] == found["recall_at_8"] == found["map_at_r"] == 0.0
    assert found["recall_at_10"] == 1.0  # nine images of other classes come first


def test_copies_count_or_are_left_out() -> None:
    """Images 0 and 1 are one picture; the only other image of their class is nearer to another class."""
    points = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.2], [0.9, 0.1], [-1.0, 0.1]]), dim=1)
    numbers, own, content = torch.tensor([0, 0, 0, 1, 1]), torch.arange(5), torch.tensor([0, 0, 2, 3, 4])
    counted = retrieval_scores(points, numbers, points, numbers, (1,), own=own)
    left = retrieval_scores(
        points, numbers, points, numbers, (1,), own=own, query_copies=content, gallery_copies=content
    )
    assert counted["recall_at_1"] == pytest.approx(2 / 5)
    assert left["recall_at_1"] == 0.0


def test_no_query_with_a_partner_is_no_number() -> None:
    points, _ = some(5, 5, 1)
    found = retrieval_scores(points, torch.arange(5), points, torch.arange(5), (1,), own=torch.arange(5))
    assert found["queries"] == 0 and math.isnan(found["recall_at_1"])
