"""Formats of whole models: vpeft's targets as the model takes them, and its answers as a head gives them.

The answers are compared with what the post-processing of transformers' image processors makes of the same outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vpeft
from tests.host_models import HOSTS, SIDE, scenes
from vpeft.batch import Batch
from vpeft.host_formats.host_format import NoHostFormat, format_of, usual_format
from vpeft.methods import LinearProbe
from vpeft.task import usual_task

transformers: Any = pytest.importorskip("transformers")


def objects(count: int = 2, masks: bool = True) -> Batch:
    """Images with vpeft's targets of objects; the first has a crowd too, and the second fills a part of its frame."""
    targets = []
    for number, scene in enumerate(scenes(count)):
        target: dict[str, Any] = {
            "boxes": scene.box[None],
            "labels": torch.tensor([scene.label]),
            "crowd": torch.tensor([False]),
            "size": (SIDE, SIDE) if number == 0 else (SIDE - 8, SIDE),
            "original": (2 * SIDE, 2 * SIDE),
        }
        if masks:
            target["masks"] = scene.mask[None]
        targets.append(target)
    crowd = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    targets[0] |= {
        "boxes": torch.cat([targets[0]["boxes"], crowd]),
        "labels": torch.cat([targets[0]["labels"], torch.tensor([1])]),
        "crowd": torch.tensor([False, True]),
    }
    if masks:
        targets[0]["masks"] = torch.cat([targets[0]["masks"], torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)])
    return Batch(torch.stack([scene.image for scene in scenes(count)]), targets, size=count)


def class_maps(count: int = 2) -> Batch:
    """Images with class maps, and a corner that does not count."""
    found = scenes(count)
    maps = torch.stack([scene.mask for scene in found]).long()
    maps[:, :4, :4] = 255
    return Batch(torch.stack([scene.image for scene in found]), maps)


def answers(name: str, task: vpeft.Task, batch: Batch, training: bool) -> Any:
    """What a tuned host gives to a task."""
    tuned = vpeft.tune(HOSTS[name].make(), LinearProbe(), train=HOSTS[name].decoder).train(training)
    torch.manual_seed(0)
    with torch.set_grad_enabled(training):
        return task.run(tuned, batch)


DETECTION = {"labels": ("red", "green")}


@pytest.mark.parametrize(
    ("name", "task", "classes"),
    [
        ("detr", "detection", 2),
        ("mask2former", "instance_segmentation", 2),
        ("eomt", "instance_segmentation", 2),
        ("segformer", "semantic_segmentation", 2),
        ("dpt", "depth", None),
        ("sam", "instance_segmentation", None),
        ("faster_rcnn", "detection", 2),
        ("mask_rcnn", "instance_segmentation", 2),
        ("deeplabv3", "semantic_segmentation", 2),
        ("rf_detr", "detection", 2),
    ],
)
def test_a_host_says_what_it_is_made_for_and_how_many_classes_it_tells(name: str, task: str, classes: int) -> None:
    host = HOSTS[name].make()
    assert usual_task(host).name == task
    assert usual_format(host).classes == classes


@pytest.mark.parametrize("name", ["detr", "rt_detr_v2", "mask2former", "sam", "mask_rcnn"])
def test_objects_train_and_come_back_as_objects(name: str) -> None:
    task = usual_task(HOSTS[name].make())(**DETECTION)
    batch = objects()
    outputs = answers(name, task, batch, training=True)
    losses = task.loss(outputs, batch)
    assert losses and all(value.dim() == 0 and torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    given = answers(name, task, batch, training=False)
    assert len(given) == 2
    for one in given:
        count = len(one["scores"])
        assert one["boxes"].shape == (count, 4) and one["labels"].shape == (count,)
        assert one["labels"].numel() == 0 or 0 <= int(one["labels"].min()) <= int(one["labels"].max()) < 2
        if task.masks:  # type: ignore[attr-defined]
            assert one["masks"].shape == (count, 1, SIDE, SIDE)
    metric = task.metric()
    task.check_batch(given, batch)
    metric.update(given, batch)
    assert 0.0 <= float(metric.compute()[task.leading.name]) <= 1.0
    assert len(task.predictions(given, batch)) == 2


def test_boxes_of_detr_are_fractions_of_the_image_without_its_bars() -> None:
    spoken = format_of(HOSTS["detr"].make(), "objects")
    batch = objects(masks=False)
    _, named = spoken.arguments(batch.inputs, batch, True)
    first, second = named["labels"]
    assert len(first["class_labels"]) == 1  # without the crowd
    left, top, right, bottom = batch.targets[1]["boxes"][0].tolist()
    wanted = [(left + right) / 2 / SIDE, (top + bottom) / 2 / (SIDE - 8), (right - left) / SIDE]
    assert second["boxes"][0, :3].tolist() == pytest.approx(wanted)
    assert named["pixel_mask"][1, -8:].sum() == 0 and bool(named["pixel_mask"][0].all())


@pytest.mark.parametrize(
    ("name", "processor"), [("detr", "DetrImageProcessor"), ("rt_detr_v2", "RTDetrImageProcessor")]
)
def test_boxes_come_back_as_the_image_processor_gives_them(name: str, processor: str) -> None:
    host: Any = HOSTS[name].make()
    batch = objects(masks=False)
    for target in batch.targets:
        target["size"] = (SIDE, SIDE)
    spoken = format_of(host, "objects")
    with torch.no_grad():
        outputs = host(**spoken.arguments(batch.inputs, batch, False)[1])
    ours = spoken.given(outputs, batch.inputs, batch, False)
    made: Any = getattr(transformers, processor)()
    options = {} if name == "detr" else {"use_focal_loss": True}
    theirs = made.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(SIDE, SIDE)] * 2, **options)
    for one, other in zip(ours, theirs, strict=True):
        best = int(one["scores"].argmax())
        at = int(other["scores"].argmax())
        assert float(one["scores"][best]) == pytest.approx(float(other["scores"][at]), abs=1e-5)
        assert int(one["labels"][best]) == int(other["labels"][at])
        assert torch.allclose(one["boxes"][best], other["boxes"][at].clamp(0, SIDE), atol=1e-3)


def test_class_maps_of_mask_queries_are_those_of_the_image_processor() -> None:
    host: Any = HOSTS["mask2former"].make()
    batch = class_maps()
    spoken = format_of(host, "mask")
    with torch.no_grad():
        outputs = host(**spoken.arguments(batch.inputs, batch, False)[1])
    ours = spoken.given(outputs, batch.inputs, batch, False).argmax(1)
    made = transformers.Mask2FormerImageProcessor()
    theirs = made.post_process_semantic_segmentation(outputs, target_sizes=[(SIDE, SIDE)] * 2)
    agree = [(one == other).float().mean() for one, other in zip(ours, theirs, strict=True)]
    assert min(agree) > 0.98  # the processor enlarges the masks in two steps


def test_regions_of_a_class_map_leave_out_what_does_not_count() -> None:
    spoken = format_of(HOSTS["mask2former"].make(), "mask")
    batch = class_maps()
    _, named = spoken.arguments(batch.inputs, batch, True)
    for masks, labels, whole in zip(named["mask_labels"], named["class_labels"], batch.targets, strict=True):
        assert labels.tolist() == [0, 1] and masks.shape == (2, SIDE, SIDE)
        assert torch.equal(masks.sum(0), (whole != 255).float())


@pytest.mark.parametrize("name", ["segformer", "upernet", "deeplabv3", "mask2former"])
def test_class_maps_train_by_the_hosts_own_loss_or_the_tasks(name: str) -> None:
    task = vpeft.get_task("semantic_segmentation")(**DETECTION)
    batch = class_maps()
    outputs = answers(name, task, batch, training=True)
    losses = task.loss(outputs, batch)
    if name == "segformer":
        with torch.no_grad():
            host = HOSTS[name].make()  # its norms hold still, as under `tune`
            own: Tensor = host(pixel_values=batch.inputs, labels=batch.targets).loss
        assert losses["loss"].item() == pytest.approx(float(own), rel=1e-4)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    task.check_batch(outputs, batch)
    task.monitor(outputs, batch)
    given = answers(name, task, batch, training=False)
    assert given.shape == (2, 2, SIDE, SIDE)
    metric = task.metric()
    metric.update(given, batch)
    assert 0.0 <= float(metric.compute()["miou"]) <= 1.0


def test_depths_are_learnt_by_their_logarithm() -> None:
    task = vpeft.get_task("depth")(scale=1.5)
    batch = Batch(
        torch.stack([scene.image for scene in scenes(2)]), torch.stack([2.0 - s.mask.float() for s in scenes(2)])
    )
    outputs = answers("dpt", task, batch, training=True)
    losses = task.loss(outputs, batch)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    host: Any = HOSTS["dpt"].make()
    with torch.no_grad():
        depth = host(pixel_values=batch.inputs).predicted_depth
    given = answers("dpt", task, batch, training=False)
    assert torch.allclose(given.exp()[:, 0], depth.clamp(min=1e-3), rtol=1e-3)


def test_a_box_asks_sam_for_its_mask() -> None:
    task = vpeft.get_task("instance_segmentation")(**DETECTION)
    batch = objects()
    batch.targets[1]["boxes"] = torch.zeros(0, 4)
    batch.targets[1]["labels"] = torch.zeros(0, dtype=torch.long)
    batch.targets[1]["masks"] = torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)
    batch.targets[1]["crowd"] = torch.zeros(0, dtype=torch.bool)
    given = answers("sam", task, batch, training=False)
    assert torch.equal(given[0]["boxes"], batch.targets[0]["boxes"][:1]) and len(given[1]["boxes"]) == 0
    losses = task.loss(answers("sam", task, batch, training=True), batch)
    assert set(losses) == {"focal", "dice", "iou"}


def test_what_a_host_does_not_take_is_refused_with_a_sentence() -> None:
    detr, segformer = HOSTS["detr"].make(), HOSTS["segformer"].make()
    with pytest.raises(NoHostFormat, match="learns targets of the kind objects, and the task gives it mask"):
        format_of(detr, "mask")
    with pytest.raises(NoHostFormat, match="learns targets of the kind mask, and the task gives it depth"):
        format_of(segformer, "depth")
    with pytest.raises(NoHostFormat, match="none of the conventions that vpeft knows"):
        usual_format(torch.nn.Linear(2, 2))
    task = vpeft.get_task("detection")(labels=("a", "b", "c"))
    with pytest.raises(NoHostFormat, match="tells 2 classes apart, and the task has 3: a, b, c"):
        answers("detr", task, objects(masks=False), training=False)
