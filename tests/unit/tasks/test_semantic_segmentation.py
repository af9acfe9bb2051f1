"""Segmentation against pixel-by-pixel counts in plain Python and against scikit-learn."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from sklearn import metrics as sklearn_metrics
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

from vpeft import describe
from vpeft.batch import Batch
from vpeft.heads.linear_map import LinearMapHead
from vpeft.task import Leading, UnsuitableTargets, get_task
from vpeft.tasks.semantic_segmentation import NoClasses, SemanticSegmentation

LABELS = ("sky", "land", "sea")
IMAGES = torch.zeros(6, 3, 8, 12)


def _draw(count: int = 6) -> tuple[Tensor, Tensor]:
    """Logits at a quarter of the masks' size; a tenth of the pixels does not count."""
    draw = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (count, 8, 12), generator=draw)
    masks[torch.rand(masks.shape, generator=draw) < 0.1] = 255
    return torch.randn(count, 3, 2, 3, generator=draw), masks


def _large(outputs: Tensor) -> Tensor:
    return functional.interpolate(outputs, (8, 12), mode="bilinear", align_corners=False)


def _scores(task: SemanticSegmentation, outputs: Tensor, masks: Tensor) -> dict[str, Any]:
    metric = task.metric()
    for first in range(0, len(outputs), 4):
        metric.update(outputs[first : first + 4], Batch(None, masks[first : first + 4]))
    found: dict[str, Any] = metric.compute()
    return found


def test_is_a_task() -> None:
    task = SemanticSegmentation(labels=LABELS)
    assert get_task("semantic_segmentation") is SemanticSegmentation
    assert (task.target_kind, task.leading) == ("mask", Leading("miou"))
    assert SemanticSegmentation(**json.loads(json.dumps(task.model_dump(mode="json")))) == task


@pytest.mark.parametrize("model", [tiny_vit, tiny_swin, tiny_convnext])
def test_head(model: Any) -> None:
    head = SemanticSegmentation(labels=LABELS).head(describe(model()), 7)
    assert isinstance(head, LinearMapHead)
    assert (head.conv.in_channels, head.conv.out_channels) == (48, 3)


def test_head_needs_classes() -> None:
    with pytest.raises(NoClasses, match="task.bind"):
        SemanticSegmentation().head(describe(tiny_vit()), 48)


def test_cross_entropy_of_the_pixels_that_count() -> None:
    outputs, masks = _draw()
    logs = _large(outputs).log_softmax(1)
    each = [
        -logs[b, masks[b, y, x], y, x].item()
        for b in range(6)
        for y in range(8)
        for x in range(12)
        if masks[b, y, x] != 255
    ]
    losses = SemanticSegmentation(labels=LABELS).loss(outputs, Batch(None, masks))
    assert losses.keys() == {"cross_entropy"}
    assert losses["cross_entropy"].item() == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_a_batch_in_which_nothing_counts_has_no_loss_and_a_finite_gradient() -> None:
    outputs = torch.randn(2, 3, 2, 3, requires_grad=True)
    losses = SemanticSegmentation(dice=1.0).loss(outputs, Batch(None, torch.full((2, 8, 12), 255)))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert losses["cross_entropy"] == 0 and torch.isfinite(outputs.grad).all()  # type: ignore[arg-type]


def test_dice() -> None:
    outputs, masks = _draw()
    masks[masks == 1] = 255  # land is nowhere, so it is left out
    counted = masks != 255
    said = _large(outputs).softmax(1)
    scores = []
    for k in (0, 2):
        p, t = said[:, k][counted], (masks == k)[counted].float()
        scores.append((2 * (p * t).sum() / (p.sum() + t.sum())).item())
    losses = SemanticSegmentation(dice=0.5).loss(outputs, Batch(None, masks))
    assert losses["dice"].item() == pytest.approx(0.5 * (1 - sum(scores) / 2), rel=1e-5)


def test_scores() -> None:
    outputs, masks = _draw()
    scores = _scores(SemanticSegmentation(labels=LABELS), outputs, masks)
    counted = masks != 255
    truth, said = masks[counted].numpy(), _large(outputs).argmax(1)[counted].numpy()
    per_class = sklearn_metrics.jaccard_score(truth, said, average=None)
    assert [row["iou"] for row in scores["per_class"]] == pytest.approx(per_class)
    assert scores["miou"] == pytest.approx(per_class.mean())
    assert scores["pixel_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, said))
    assert scores["confusion"] == sklearn_metrics.confusion_matrix(truth, said).tolist()
    assert [row["pixels"] for row in scores["per_class"]] == [int((truth == k).sum()) for k in range(3)]
    loss = SemanticSegmentation().loss(outputs, Batch(None, masks))["cross_entropy"].item()
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    json.dumps(scores)


def test_classes_that_are_nowhere_are_left_out() -> None:
    outputs = torch.zeros(1, 3, 2, 2)
    outputs[:, 0] = 1
    scores = _scores(SemanticSegmentation(labels=LABELS), outputs, torch.tensor([[[0, 0], [0, 1]]]))
    assert scores["miou"] == pytest.approx((0.75 + 0) / 2) and scores["per_class"][2]["iou"] is None


def test_monitor() -> None:
    outputs = torch.zeros(2, 2, 1, 2)
    outputs[0, 1] = 1
    masks = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 255, 255]]])
    assert SemanticSegmentation().monitor(outputs, Batch(None, masks))["pixel_accuracy"].item() == 0.5 + 1.0


def test_predictions() -> None:
    outputs = torch.zeros(1, 3, 2, 2)
    outputs[0, 1, 0, 0] = outputs[0, 2, :, 1] = outputs[0, 2, 1, 0] = 9
    (found,) = SemanticSegmentation(labels=LABELS).predictions(outputs, Batch(IMAGES[:1], None, ("a.png",)))
    assert found.id == "a.png" and found.map is not None and found.map.shape == (8, 12)
    assert found.map[0, 0] == 1 and found.map[7, 11] == 2
    land = int((found.map == 1).sum()) / 96
    assert found.values == {"shares": {"land": pytest.approx(land), "sea": pytest.approx(1 - land)}}
    assert [row["label"] for row in found.rows] == ["sea", "land"]


def test_report() -> None:
    outputs, masks = _draw()
    task = SemanticSegmentation(labels=LABELS)
    ((_, columns, rows),) = task.report(_scores(task, outputs, masks))
    assert columns == ("label", "pixels", "iou", "accuracy") and [row[0] for row in rows] == list(LABELS)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.tensor([0, 1, 2, 0, 1, 2]), "whole number 0.*learns masks.*classification"),
        (torch.rand(6), "real numbers.*regression"),
        (torch.tensor([[0, 1, 1]] * 6), "zeros and ones.*multilabel"),
        (torch.rand(6, 8, 12), r"torch.float32.*mask.long\(\)"),
        (torch.full((6, 8, 12), 3), r"class 3, but there are 3 classes \(0 to 2\).*255"),
        (torch.full((6, 8, 12), -1), "class -1"),
        (None, "no target"),
    ],
)
def test_targets_that_do_not_fit(targets: Any, said: str) -> None:
    task = SemanticSegmentation(labels=LABELS)
    with pytest.raises(UnsuitableTargets, match=said):
        task.check_batch(torch.zeros(6, 3, 2, 3), Batch(IMAGES, targets))
    if targets is not None:
        with pytest.raises(UnsuitableTargets, match=said):
            task.check(TensorDataset(IMAGES, targets))


def test_masks_of_different_sizes() -> None:
    task = SemanticSegmentation(labels=LABELS)
    masks = [torch.zeros(8, 12, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64)]
    batch = task.collate([(IMAGES[0], masks[0]), (IMAGES[1], masks[1])])
    with pytest.raises(UnsuitableTargets, match="different sizes"):
        task.check_batch(torch.zeros(2, 3, 2, 3), batch)


def test_masks_that_fit() -> None:
    task = SemanticSegmentation(labels=LABELS)
    outputs, masks = _draw()
    task.check(TensorDataset(IMAGES, masks))
    eight_bits = [(IMAGES[i], masks[i].to(torch.uint8)[None]) for i in range(6)]
    batch = task.collate(eight_bits)
    assert batch.targets.shape == (6, 1, 8, 12)
    task.check_batch(outputs, batch)
    assert task.loss(outputs, batch) == task.loss(outputs, batch.with_(targets=masks))
    assert _scores(task, outputs, batch.targets) == _scores(task, outputs, masks)
    assert task.monitor(outputs, batch) == task.monitor(outputs, batch.with_(targets=masks))
    with pytest.raises(UnsuitableTargets, match="rows, columns"):
        task.check_batch(torch.zeros(6, 3), batch)
