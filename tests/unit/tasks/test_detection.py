"""Detection and instance segmentation: batches, what is refused, and predictions in pixels of the original image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import tiny_vit
from torch import Tensor

import vpeft
from vpeft.batch import Batch, Sample, run_model
from vpeft.data.preprocessing import Preprocessing
from vpeft.methods import LoRA
from vpeft.task import UnsuitableTargets, get_task
from vpeft.tasks import Classification, Detection, InstanceSegmentation, SemanticSegmentation

LABELS = ("cat", "dog")


def target(boxes: Tensor | None = None, labels: Tensor | None = None, **more: Any) -> dict[str, Any]:
    found = torch.tensor([[1.0, 2, 9, 12]]) if boxes is None else boxes
    return {
        "boxes": found,
        "labels": torch.zeros(len(found), dtype=torch.int64) if labels is None else labels,
        "crowd": torch.zeros(len(found), dtype=torch.bool),
        **more,
    }


def test_images_of_several_sizes_are_padded_to_multiples_of_32_and_those_of_one_size_are_not() -> None:
    task = Detection(labels=LABELS)
    small, large = torch.ones(3, 20, 30), torch.ones(3, 40, 25)
    batch = task.collate([Sample(small, target(), "a.png"), Sample(large, target(), "b.png")])
    assert batch.inputs.shape == (2, 3, 64, 32) and len(batch) == 2 and batch.ids == ("a.png", "b.png")
    assert batch.inputs[0].sum() == 3 * 20 * 30 and batch.inputs[0, :, :20, :30].min() == 1
    assert [one["size"] for one in batch.targets] == [(20, 30), (40, 25)]
    alike = task.collate([Sample(small, target(size=(10, 30), original=(100, 300)))])
    assert alike.inputs.shape == (1, 3, 20, 30) and alike.targets[0]["original"] == (100, 300)
    part = batch[1:]
    assert len(part) == 1 and part.targets[0]["size"] == (40, 25)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "learns .*class numbers there is the task classification"),
        (torch.zeros(8, 8), "semantic_segmentation"),
        (target(torch.tensor([[1.0, 2, float("nan"), 4]])), "is no box"),
        (target(torch.tensor([[30.0, 40, 10, 10]])), "box_convert"),
        (target(torch.zeros(2, 5)), r"give \(N, 4\)"),
        (target(labels=torch.tensor([2])), r"holds class 2, but there are 2 classes \(0 to 1\): cat, dog"),
        (target(labels=torch.tensor([-1])), "holds class -1"),
    ],
)
def test_a_target_of_another_kind_or_an_impossible_one_is_refused_by_name(given: Any, said: str) -> None:
    with pytest.raises(UnsuitableTargets, match=said) as caught:
        Detection(labels=LABELS).collate([Sample(torch.zeros(3, 16, 16), given, "photo 7.png")])
    assert "photo 7.png" in str(caught.value)


def test_objects_are_refused_by_tasks_that_learn_something_else_and_boxes_by_the_task_of_masks() -> None:
    images = [(torch.zeros(3, 16, 16), target())]
    for other in (Classification(labels=LABELS), SemanticSegmentation(labels=LABELS)):
        with pytest.raises(UnsuitableTargets, match=r"detection"):
            other.check(images)
    with pytest.raises(UnsuitableTargets, match="1 boxes and no masks.*there is the task detection"):
        InstanceSegmentation(labels=LABELS).collate([Sample(images[0][0], target())])
    Detection(labels=LABELS).check(images)
    assert get_task("instance") is InstanceSegmentation


def test_predictions_are_in_pixels_of_the_original_image() -> None:
    task = InstanceSegmentation(labels=LABELS, confidence=0.5)
    sizes = {"size": (32, 64), "original": (16, 128)}  # half as high and twice as wide
    batch = task.collate([Sample(torch.zeros(3, 64, 64), target(masks=torch.zeros(1, 64, 64), **sizes), "a.png")])
    found = {
        "boxes": torch.tensor([[8.0, 8, 24, 24], [0, 0, 64, 32]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.9, 0.2]),
        "box_masks": torch.ones(2, 1, 28, 28),
    }
    (said,) = task.predictions([found], batch)
    assert said.id == "a.png" and said.objects is not None
    assert torch.equal(said.objects.boxes[0], torch.tensor([16.0, 4, 48, 12]))
    assert said.rows == (
        {"label": "dog", "score": pytest.approx(0.9), "left": 16.0, "top": 4.0, "right": 48.0, "bottom": 12.0},
    )
    assert [one["label"] for one in said.values["objects"]] == ["dog", "cat"]
    masks = said.objects.masks
    assert masks is not None and masks.shape == (2, 16, 128)
    assert masks[0, 5:11, 18:46].all() and masks[0].sum() <= 34 * 10
    # a host's masks are of the whole batch
    whole = torch.zeros(2, 1, 64, 64)
    whole[0, 0, 8:24, 8:24] = 1
    del found["box_masks"]
    (same,) = task.predictions([{**found, "masks": whole}], batch)
    assert same.objects is not None and same.objects.masks is not None
    assert same.objects.masks[0].nonzero().amin(0).tolist() == [4, 16]
    assert same.objects.masks[0].nonzero().amax(0).tolist() == [11, 47]


def test_the_truth_is_a_prediction_that_is_sure() -> None:
    task = Detection(labels=LABELS)
    batch = task.collate([Sample(torch.zeros(3, 32, 32), target(size=(32, 32), original=(64, 64)), "a.png")])
    (true,) = task.truth(batch)
    assert true.objects is not None and true.objects.sure == 1 and true.objects.labels == ("cat",)
    assert true.objects.boxes.tolist() == [[2, 4, 18, 24]]


def test_an_image_without_objects_can_be_predicted_through_the_transforms_of_the_task() -> None:
    from PIL import Image

    task = Detection(labels=LABELS, head="retinanet(channels=16, score=0.0)")
    preprocessing = Preprocessing(size=(32, 32))
    transform = task.transforms(preprocessing, "none", False)
    sample = task.sample_of(Image.new("RGB", (200, 100)), transform, "x.png")
    assert sample.input.shape == (3, 32, 32)
    assert sample.target["size"] == (16, 32) and sample.target["original"] == (100, 200)
    batch = task.collate([sample])
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), LoRA(), task=task, show=False).eval()
    with torch.no_grad():
        (said,) = task.predictions(run_model(tuned, batch), batch)
    assert said.objects is not None and len(said.objects.boxes)
    assert float(said.objects.boxes[:, 2].max()) <= 200 and float(said.objects.boxes[:, 3].max()) <= 100
    assert float(said.objects.boxes.max()) > 100


def test_outputs_that_are_no_detections_and_samples_without_objects_are_refused() -> None:
    task = Detection(labels=LABELS)
    batch = task.collate([Sample(torch.zeros(3, 32, 32), target())])
    with pytest.raises(UnsuitableTargets, match=r"a tensor \(1, 2\).*tune"):
        task.check_batch(torch.zeros(1, 2), batch)
    with pytest.raises(UnsuitableTargets, match="losses that its head gives in training mode"):
        task.loss([], batch)
    unknown = task.collate([Sample(torch.zeros(3, 32, 32), None, "b.png")])
    with pytest.raises(UnsuitableTargets, match="objects of b.png are not known"):
        task.check_batch([], unknown)


def test_the_precision_of_each_class_is_a_table_and_a_bar() -> None:
    details = {
        "per_class": [
            {"label": "cat", "objects": 3, "AP": 0.5, "VOC_AP50": 0.75, "mask_AP": 0.25},
            {"label": "dog", "objects": 1, "AP": 0.1, "VOC_AP50": 0.2, "mask_AP": 0.3},
        ]
    }
    for task, bars in ((Detection(labels=LABELS), 2), (InstanceSegmentation(labels=LABELS), 4)):
        ((title, columns, rows),) = task.report(details)
        assert title == "Each class" and columns[:3] == ["label", "objects", "AP"] and rows[0][:3] == ["cat", 3, 0.5]
        figure = task.picture(details)
        assert figure is not None and len(figure.axes[0].patches) == bars
        assert sorted(round(bar.get_width(), 2) for bar in figure.axes[0].patches)[0] == 0.1
        assert task.picture({}) is None


def test_an_empty_batch_of_images_without_objects_has_a_loss() -> None:
    task = InstanceSegmentation(labels=LABELS, head="mask_rcnn(channels=16, hidden=16, mask_channels=8, rois=16)")
    nothing = target(torch.zeros(0, 4), masks=torch.zeros(0, 32, 32, dtype=torch.uint8))
    batch: Batch = task.collate([Sample(torch.zeros(3, 32, 32), nothing)] * 2)
    torch.manual_seed(0)
    tuned = vpeft.tune(tiny_vit(), LoRA(), task=task, show=False).train()
    losses = task.loss(run_model(tuned, batch), batch)
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite() and losses["mask"] == 0
    total.backward()
