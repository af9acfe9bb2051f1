"""Scores, and that taking them leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.unit.training.material import Patches, tuned_vit
from vpeft.task import UnsuitableTargets
from vpeft.training.evaluate import UnsuitableData, evaluate
from vpeft.training.failures import NonFinite


class Fixed(nn.Module):
    """Answers with the class that stands in the first pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 4.0 * torch.eye(3)[images[:, 0, 0, 0].long()]


def answered(pairs: list[tuple[int, int]]) -> list[tuple[torch.Tensor, int]]:
    return [(torch.full((3, 1, 1), float(said)), true) for true, said in pairs]


def test_scores_by_hand() -> None:
    pairs = [(0, 0), (0, 0), (0, 1), (0, 0), (1, 1), (1, 0)]
    scores = evaluate(Fixed(), answered(pairs), batch=4)
    assert scores.count == 6
    assert scores.confusion == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.top1 == 4 / 6
    assert scores.mean_per_class == (3 / 4 + 1 / 2) / 2  # the third class has no images and does not count
    assert [one["recall"] for one in scores.per_class] == [0.75, 0.5, None]
    # Right answers cost -log softmax(4), wrong ones 4 more.
    right = float(np.log(np.exp(4) + 2) - 4)
    assert scores.loss == pytest.approx((4 * right + 2 * (right + 4)) / 6, rel=1e-6)


def test_repeatable_and_without_trace() -> None:
    tuned = tuned_vit()
    data = Patches(17, noise=0.5)
    tuned.train()
    tuned.backbone.blocks[1].eval()
    modes = [module.training for module in tuned.modules()]
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(3), random.random()
    torch.manual_seed(3)
    random.seed(3)
    first = evaluate(tuned, data, batch=4)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert [module.training for module in tuned.modules()] == modes
    assert not any(parameter.grad is not None for parameter in tuned.parameters())
    torch.manual_seed(1234)
    assert evaluate(tuned, data, batch=4) == first
    assert evaluate(tuned, data, batch=4, workers=1) == first
    assert first.labels == data.labels
    # Images that draw nothing get the same scores in batches of any size.
    still, other = (evaluate(tuned, Patches(17), batch=batch) for batch in (4, 17))
    assert other.confusion == still.confusion
    assert other.loss == pytest.approx(still.loss, rel=1e-5)


def test_bf16_runs_and_is_close() -> None:
    tuned, data = tuned_vit(), Patches(12)
    assert evaluate(tuned, data, precision="bf16").loss == pytest.approx(evaluate(tuned, data).loss, abs=0.1)


def test_labels_that_the_model_does_not_know() -> None:
    with pytest.raises(UnsuitableTargets, match=r"A label is 4, but the model has 3 classes.*num_classes"):
        evaluate(tuned_vit(classes=3), Patches(10, classes=5))
    with pytest.raises(UnsuitableData, match="empty"):
        evaluate(tuned_vit(), Patches(0))


def test_no_score_from_numbers_that_are_not_finite() -> None:
    tuned = tuned_vit()
    with torch.no_grad():
        tuned.backbone.blocks[1].mlp.fc2.weight[0, 0] = float("inf")
    with pytest.raises(NonFinite, match=r"blocks\.1\.mlp\.fc2\.weight"):
        evaluate(tuned, Patches(4))
