"""Segmentation against pixel-by-pixel counts in plain Python and against scikit-learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics
from tests.models import tiny_convnext, tiny_swin, tiny_vit
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset
from torchvision.tv_tensors import Mask

import vpeft
from vpeft import describe
from vpeft.batch import Batch, Sample
from vpeft.data.preprocessing import Preprocessing
from vpeft.heads.linear_map import LinearMapHead
from vpeft.methods import LinearProbe
from vpeft.task import BadOption, Leading, UnsuitableTargets, all_tasks, get_task
from vpeft.tasks.map_task import window_of
from vpeft.tasks.semantic_segmentation import NoClasses, SemanticSegmentation
from vpeft.training.recipe import TaskChoice

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


# -- weights, auxiliary outputs, edges ---------------------------------------------------------------------------------


def test_the_short_name_means_the_same_task_in_files() -> None:
    assert get_task("semantic") is SemanticSegmentation and "semantic" not in all_tasks()
    assert TaskChoice.model_validate({"name": "semantic"}).name == "semantic_segmentation"


def test_class_weights_are_those_of_torch() -> None:
    outputs, masks = _draw()
    task = SemanticSegmentation(labels=LABELS, class_weights=(1.0, 0.5, 3.0))
    expected = functional.cross_entropy(_large(outputs), masks, torch.tensor([1.0, 0.5, 3.0]), ignore_index=255)
    assert task.loss(outputs, Batch(None, masks))["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = task.loss(outputs, Batch(None, torch.full_like(masks, 255)))
    assert nothing["cross_entropy"] == 0
    with pytest.raises(BadOption, match="class_weights has 2 numbers, and there are 3 classes: sky"):
        SemanticSegmentation(labels=LABELS, class_weights=(1.0, 2.0)).head(describe(tiny_vit()), 48)


def test_auxiliary_outputs_have_a_loss_of_their_own_and_no_score() -> None:
    outputs, masks = _draw()
    other = torch.randn(6, 3, 4, 6, generator=torch.Generator().manual_seed(3))
    task, batch = SemanticSegmentation(labels=LABELS, auxiliary_weight=0.4), Batch(None, masks)
    both = {"logits": outputs, "auxiliary": other}
    losses = task.loss(both, batch)
    assert losses["cross_entropy"] == task.loss(outputs, batch)["cross_entropy"]
    torch.testing.assert_close(losses["auxiliary"], 0.4 * task.loss(other, batch)["cross_entropy"])
    task.check_batch(both, batch)
    assert task.monitor(both, batch) == task.monitor(outputs, batch)
    metric = task.metric()
    metric.update(both, batch)
    assert metric.compute() == _scores(task, outputs, masks)


def test_mean_accuracy_is_the_mean_of_the_classes_recalls() -> None:
    outputs, masks = _draw()
    counted = masks != 255
    truth, said = masks[counted].numpy(), _large(outputs).argmax(1)[counted].numpy()
    scores = _scores(SemanticSegmentation(labels=LABELS), outputs, masks)
    assert scores["mean_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(truth, said))
    assert "boundary_iou" not in scores


def _eroded(mask: np.ndarray[Any, Any], times: int) -> np.ndarray[Any, Any]:
    """Pixels whose eight neighbours are all in the mask, so many times over; beyond the image there is nothing."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        height, width = mask.shape
        mask = np.all([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return mask


def test_boundary_iou_against_repeated_erosion() -> None:
    draw = torch.Generator().manual_seed(4)
    truth = (torch.randn(2, 12, 15, generator=draw).cumsum(1).cumsum(2) > 0).long()
    truth = functional.interpolate(truth[:, None].double(), scale_factor=10, mode="nearest")[:, 0].long()
    truth[0, :20, :20] = 255
    said = truth.where(truth != 255, 0).roll(7, -1)
    logits = functional.one_hot(said, 2).movedim(-1, 1).float()
    reach = round(0.02 * (120**2 + 150**2) ** 0.5)
    assert reach == 4
    common, either = np.zeros(2), np.zeros(2)
    for one, other in zip(truth.numpy(), said.numpy(), strict=True):
        for k in (0, 1):
            edges = [mask & ~_eroded(mask, reach) & (one != 255) for mask in (one == k, other == k)]
            common[k] += (edges[0] & edges[1]).sum()
            either[k] += (edges[0] | edges[1]).sum()
    scores = _scores(SemanticSegmentation(labels=("a", "b"), boundary=True), logits, truth)
    assert scores["boundary_iou"] == pytest.approx((common / either).mean())
    assert 0.2 < scores["boundary_iou"] < 0.9 < scores["miou"] + 0.2


def test_picture() -> None:
    outputs, masks = _draw()
    task = SemanticSegmentation(labels=LABELS)
    scores = _scores(task, outputs, masks)
    figure = task.picture(scores)
    assert figure is not None
    matrix, bars = figure.axes[:2]
    assert [label.get_text() for label in matrix.get_yticklabels()] == list(LABELS)
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([row["iou"] for row in scores["per_class"]])  # type: ignore[attr-defined]
    assert task.picture({}) is None


# -- sizes -------------------------------------------------------------------------------------------------------------

PLAIN = Preprocessing(size=(64, 64), resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)


def _picture(height: int = 50, width: int = 70) -> tuple[Image.Image, Mask]:
    draw = np.random.default_rng(0)
    classes = np.kron(draw.integers(0, 3, (height // 10, width // 10)), np.ones((10, 10), dtype=np.int64))
    image = Image.fromarray((np.stack([classes * 80] * 3, axis=-1)).astype(np.uint8))
    return image, Mask(torch.from_numpy(classes))


def test_without_options_the_transforms_are_those_of_the_preprocessing() -> None:
    task, image = SemanticSegmentation(labels=LABELS), _picture()
    assert not task.own_transforms
    for training in (True, False):
        own, plain = task.transforms(PLAIN, "none", training)(*image), PLAIN.transform()(*image)
        assert torch.equal(own[0], plain[0]) and torch.equal(own[1], plain[1])


def test_options_choose_sizes_for_training_and_evaluation() -> None:
    task = SemanticSegmentation(labels=LABELS, size=32, shortest=40, longest=60, augment="scaled_crop+flip")
    torch.manual_seed(0)
    pixels, mask = task.transforms(PLAIN, "none", True)(*_picture())
    assert pixels.shape == (3, 32, 32) and mask.shape == (32, 32)
    pixels, mask = task.transforms(PLAIN, "none", False)(*_picture())
    assert pixels.shape == (3, 40, 56) and mask.shape == (40, 56)
    other = SemanticSegmentation(labels=LABELS, ignore=9, size=(32, 64), fit="longer")
    pixels, mask = other.transforms(PLAIN, "none", False)(*_picture())
    assert pixels.shape == (3, 32, 64) and set(mask[:, 45:].unique().tolist()) == {9}


def test_batches_of_several_sizes_are_padded() -> None:
    task = SemanticSegmentation(labels=LABELS, ignore=7)
    samples = [Sample(torch.ones(3, *size), torch.ones(size, dtype=torch.uint8), "a") for size in ((40, 56), (50, 30))]
    batch = task.collate(samples)
    assert batch.inputs.shape == (2, 3, 64, 64) and batch.targets.shape == (2, 64, 64)
    assert batch.inputs[1, :, :50, :30].eq(1).all() and batch.inputs[1].sum() == 3 * 50 * 30
    assert batch.targets[1, :50, :30].eq(1).all() and (batch.targets == 7).sum() == 2 * 64 * 64 - 40 * 56 - 50 * 30
    assert batch.targets.dtype == torch.int64
    alone = SemanticSegmentation(labels=LABELS, shortest=40).collate(samples[:1])
    assert alone.inputs.shape == (1, 3, 64, 64)


def _as_outputs(classes: Tensor) -> Tensor:
    return functional.one_hot(classes.where(classes < 3, 0), 3).movedim(-1, 0).float() * 9


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": (96, 128), "fit": "longer"},
        {"size": (96, 128), "fit": "squash"},
        {"shortest": 100, "longest": 120},
        {"shortest": (80, 100)},
    ],
)
@pytest.mark.parametrize("resize", ["shorter", "longer", "squash"])
def test_predictions_come_back_in_the_pixels_of_the_original(options: dict[str, Any], resize: str) -> None:
    """A model that says exactly what it is shown gives the original's mask back, but for the edges of classes."""
    preprocessing = Preprocessing(size=(96, 96), resize=resize, crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]
    task = SemanticSegmentation(labels=LABELS, **options)
    image, mask = _picture(100, 140)
    transform = task.transforms(preprocessing, "none", False)
    shown = transform(image, mask)[1]
    sample = task.sample_of(image, transform, "a.png")
    batch = task.collate([sample])
    outputs = functional.pad(_as_outputs(shown), [0, batch.inputs.shape[3] - shown.shape[1], 0, 0])
    outputs = functional.pad(outputs, [0, 0, 0, batch.inputs.shape[2] - shown.shape[0]])
    (found,) = task.predictions(outputs[None], batch)
    assert found.map is not None and found.map.shape == (100, 140)
    seen = found.map != 255
    window = window_of(transform, (100, 140))
    assert int(seen.sum()) == (window.covers[2] - window.covers[0]) * (window.covers[3] - window.covers[1])
    right = found.map[seen] == mask[seen]
    assert right.double().mean() > 0.95
    assert bool(seen.all()) == bool(options)  # the preprocessing alone shows the centre


def test_options_that_do_not_fit() -> None:
    with pytest.raises(BadOption, match="longest limits the longer side"):
        SemanticSegmentation(longest=60)
    with pytest.raises(BadOption, match="above 0"):
        SemanticSegmentation(size=0)
    assert SemanticSegmentation(size=32).reads_alike != SemanticSegmentation(size=48).reads_alike
    assert SemanticSegmentation(dice=1).reads_alike == SemanticSegmentation().reads_alike


def test_learns_from_images_of_several_sizes() -> None:
    """Nothing is computed once for all images, which would need one size; batches are padded."""
    samples = []
    for number in range(8):
        height, width = ((40, 56), (64, 48), (50, 50), (64, 64))[number % 4]
        mask = torch.zeros(height, width, dtype=torch.int64)
        mask[: height // 2] = 1
        samples.append((torch.randn(3, height, width) * 0.1 + mask, mask))
    task = SemanticSegmentation(labels=("a", "b"), head="segformer_map(channels=8)")
    tuned = vpeft.tune(tiny_vit(dynamic_img_size=True), LinearProbe(), task=task)
    result = vpeft.fit(tuned, samples, samples[:4], optimisation=vpeft.Optimisation(epochs=3, batch=4, lr=3e-3))
    losses = [epoch.train_loss for epoch in result.history]
    assert losses[-1] < losses[0] and result.val is not None and result.val.values["miou"] > 0.5
