"""Tiny data for every kind of target, and what must hold for a method and a task on a backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import vpeft
from tests.families import EVERY
from tests.models import ANY_SIZE
from vpeft.batch import Batch, Sample, run_model
from vpeft.data.target import JOIN
from vpeft.head import all_heads, make_head, raw_outputs
from vpeft.injection.outputs import tensors_in
from vpeft.injection.tuned_model import TunedModel
from vpeft.injection.verify import DeadPlace
from vpeft.method import Method, all_methods
from vpeft.methods import LinearProbe
from vpeft.task import TargetKind, Task, all_tasks
from vpeft.tasks.host import held_still
from vpeft.training.optimisation import Optimisation

LABELS = ("dark", "middle", "bright")
# Epochs in which a cell must learn; the second number where the first is too few.
EPOCHS = (10, 20)
# What tasks learn in the cells: the options that make the heads of detectors small, and heads besides the default one.
SMALL = "channels=16, hidden=32, rois=64, proposals=50"
LEARNT: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in all_tasks()},
    "multi_task": ("multi_task", {"parts": {"regions": "semantic_segmentation", "far": "depth(head=linear_map)"}}),
    "surface_normals": ("surface_normals", {"head": "linear_map"}),
    "edges": ("edges", {"head": "linear_map", "positive_weight": 0.5}),
    "saliency": ("saliency", {"head": "linear_map"}),
    "detection": ("detection", {"head": f"faster_rcnn({SMALL})"}),
    "instance_segmentation": ("instance_segmentation", {"head": f"mask_rcnn({SMALL}, mask_channels=16)"}),
    "semantic_segmentation with upernet": (
        "semantic_segmentation",
        {"head": "upernet(channels=16, auxiliary_channels=16)"},
    ),
}
HEADS: dict[str, str] = {
    "faster_rcnn": SMALL,
    "retinanet": "channels=16",
    "mask_rcnn": f"{SMALL}, mask_channels=16",
    "cascade_mask_rcnn": f"{SMALL}, mask_channels=16",
}


def learnt(name: str) -> Task:
    """A task as the cells learn it."""
    task, options = LEARNT[name]
    return all_tasks()[task](**options)


class TinySet:
    """Images whose targets can be learnt: each third of a period is brighter than the one before.

    `labels` are the names of the classes or outputs; `targets` all targets in order.
    """

    def __init__(self, kind: TargetKind, shape: tuple[int, ...], count: int = 12, make: Any = None) -> None:
        self.labels = [f"{one}/{label}" for one in kind.split(JOIN) for label in LABELS]
        if JOIN not in kind:
            self.labels = list(LABELS)
        generator = torch.Generator().manual_seed(5)
        self.samples = [_sample(kind, index, shape, generator) for index in range(count)]
        if make is not None:  # inputs of another layout, such as tokens
            self.samples = [
                Sample(row, sample.target, sample.id) for row, sample in zip(make(count), self.samples, strict=True)
            ]
        self.targets = [sample.target for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _sample(kind: TargetKind, index: int, shape: tuple[int, ...], generator: torch.Generator) -> Sample:
    """One image and its target: the brightness tells the class, the number and the labels; two halves make the mask."""
    level = index % len(LABELS)
    image = 0.2 * torch.randn(shape, generator=generator) + level - 1.0
    target: Any = level
    if kind == "labels":
        target = torch.tensor([float(level == 0), float(level >= 1), float(level == 2)])
    elif kind == "values":
        target = torch.tensor([float(level), 2.0 - level, 0.5 * level])
    elif JOIN in kind:
        made = {one: _sample(one, index, shape, generator) for one in kind.split(JOIN)}
        first, *_ = made.values()
        return Sample(first.input, {one: sample.target for one, sample in made.items()}, first.id)
    elif kind in ("edges", "saliency"):
        target = torch.full(shape[-2:], int(level == 2), dtype=torch.long)
        target[..., : shape[-1] // 4] = 1 - target[..., : shape[-1] // 4]
        image[..., : shape[-1] // 4] -= 2.0 * (level - 1.0)
    elif kind == "normals":
        target = torch.zeros(3, *shape[-2:])
        target[level] = 1.0
    elif kind in ("mask", "parts"):
        half = shape[-1] // 2
        image[..., half:] -= 1.0
        target = torch.full(shape[-2:], level, dtype=torch.long)
        target[..., half:] = (level + 1) % len(LABELS)
    elif kind == "depth":
        target = torch.full(shape[-2:], 1.0 + level)
    elif kind == "objects":
        target = _objects(image if len(shape) == 3 else torch.zeros(3, 32, 32), level, generator)
    return Sample(image, target, f"{index}.png")


def _objects(image: Tensor, level: int, generator: torch.Generator) -> dict[str, Any]:
    """One bright box, whose class is the channel that is brighter, drawn into the image (C, H, W); every fourth image
    has none."""
    height, width = image.shape[-2:]
    image -= image.mean()
    count = int(torch.randint(4, (), generator=generator) > 0)
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    boxes = torch.zeros(count, 4)
    for mask, box in zip(masks, boxes, strict=True):
        rows, columns = height // 2, width // 2
        top, left = (int(torch.randint(side // 2, (), generator=generator)) for side in (height, width))
        image[..., top : top + rows, left : left + columns] += 1.0
        image[level % len(image), top : top + rows, left : left + columns] += 2.0
        mask[top : top + rows, left : left + columns] = 1
        box.copy_(torch.tensor([left, top, left + columns, top + rows]))
    return {
        "boxes": boxes,
        "labels": torch.full((count,), level),
        "crowd": torch.zeros(count, dtype=torch.bool),
        "masks": masks,
        "size": (height, width),
        "original": (height, width),
    }


@dataclass(frozen=True)
class TaskCell:
    """A method and a task, by its name in `LEARNT`, on one backbone, at one image size."""

    method: Method
    task: str
    family: str
    size: tuple[int, int]

    def model(self) -> nn.Module:
        """The tiny backbone, with the same weights at each call."""
        torch.manual_seed(0)
        return ANY_SIZE[self.family][0]()

    def data(self) -> TinySet:
        return TinySet(learnt(self.task).target_kind, (3, *self.size))


def whole(task: Task, samples: Any) -> Batch:
    """A data set as one batch."""
    return task.collate([samples[index] for index in range(len(samples))])


def mean_loss(tuned: TunedModel, task: Task, batch: Batch) -> float:
    """The sum of the parts of the loss, in evaluation mode; in training mode without chance if there is none there."""
    tuned.eval()
    with torch.no_grad():
        outputs = run_model(tuned, batch)
        if isinstance(outputs, list):  # detections
            with held_still(tuned), torch.random.fork_rng():
                torch.manual_seed(0)  # of the boxes that are sampled
                outputs = run_model(tuned, batch)
        parts = task.loss(outputs, batch)
    assert parts and all(part.dim() == 0 and part.dtype == torch.float32 for part in parts.values()), parts
    return float(torch.stack(list(parts.values())).sum())


def same(found: Any, expected: Any) -> bool:
    """Whether two outputs, tensors or mappings of them, are equal bit by bit."""
    if isinstance(expected, Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(same(found[name], value) for name, value in expected.items())
    return len(found) == len(expected) and all(same(a, b) for a, b in zip(found, expected, strict=True))


def attaches_learns_reloads_and_predicts(cell: TaskCell) -> None:
    """The method with the task's head: the loss falls by a tenth on a tiny set; saved and loaded, it gives the same
    outputs and one prediction for each sample.

    It has ten epochs for that, and where they are too few, twenty from the start: EVP shrinks the picture into a black
    border, so that a frozen backbone's features differ less and the head alone learns at a third of the pace.
    """
    data = cell.data()
    task = learnt(cell.task).bind(data)
    fell: list[str] = []
    for epochs in EPOCHS:
        torch.manual_seed(1)
        tuned = vpeft.tune(cell.model(), cell.method, task=task, show=False)
        # after `tune`, which refuses a task that the model cannot serve
        train, val = (task.dataset(data, training) for training in (True, False))
        task.check(train)
        batch = whole(task, val)
        before = mean_loss(tuned, task, batch)
        settings = Optimisation(epochs=epochs, batch=6, lr=5e-3, warmup=0, validate_every=epochs, device="cpu")
        result = vpeft.fit(tuned, train, val, task=task, optimisation=settings, progress=False)
        assert task.leading.name in result.history[-1].val, result.history[-1]
        after = mean_loss(tuned, tuned.task, batch)
        fell.append(f"from {before:.4f} to {after:.4f} in {epochs} epochs")
        if after < 0.9 * before:
            break
    else:
        raise AssertionError(f"the loss went {', '.join(fell)}")
    task = tuned.task
    with torch.no_grad():
        outputs = run_model(tuned, batch)
    with TemporaryDirectory() as folder:
        again = vpeft.load(cell.model(), tuned.save(Path(folder) / "a.safetensors")).eval()
    assert again.task == task
    with torch.no_grad():
        assert same(run_model(again, batch), outputs)
    said = again.task.predictions(outputs, batch)
    assert [one.id for one in said] == list(batch.ids)
    assert all(one.rows or one.map is not None or one.objects is not None for one in said)


def attach_default_head(family: str, task: str) -> None:
    """The task's own head on a family: finite outputs and loss, and a gradient for every tensor of the head.

    Raises:
        MissingPlace: the family lacks a place that the head reads.
    """
    torch.manual_seed(0)
    description = vpeft.describe(EVERY[family]())
    inputs = description.inputs
    data = TinySet(learnt(task).target_kind, inputs.shape, count=6, make=inputs.make)
    bound = learnt(task).bind(data)
    torch.manual_seed(1)
    tuned = vpeft.tune(description, LinearProbe(), task=bound, verify=False, show=False).train()
    batch = whole(bound, bound.dataset(data, training=True))
    _head_learns(tuned, torch.stack(list(bound.loss(run_model(tuned, batch), batch).values())).sum())


def attach_head(family: str, kind: str) -> None:
    """A head of this kind on a family: three finite outputs for each input (each cell of a map, each pair), gradients.

    Raises:
        MissingPlace: the family lacks a place that the head reads.
    """
    torch.manual_seed(0)
    description = vpeft.describe(EVERY[family]())
    tuned = vpeft.tune(
        description,
        LinearProbe(),
        head=lambda backbone, width: make_head(f"{kind}({HEADS.get(kind, '')})", backbone, width, 3),
        verify=False,
        show=False,
    ).train()
    with raw_outputs():
        outputs = tuned(description.inputs.example(2, torch.Generator().manual_seed(1)))
    if isinstance(outputs, Tensor):
        assert outputs.shape[0] in (1, 2) and outputs.shape[1] == 3, outputs.shape
    generator = torch.Generator().manual_seed(2)  # squares of logits that are all equal would cancel
    found = [(one * torch.randn(one.shape, generator=generator)).sum() for one in tensors_in(outputs)]
    _head_learns(tuned, torch.stack(found).sum())


def map_lies_as_the_image_lies(family: str) -> None:
    """Noise on the upper right quarter of an image changes the upper right quarter of the map that a head reads most.

    Equality within 15 % passes: small nets see the whole image from every cell.

    Raises:
        MissingPlace: the family has no map.
    """
    torch.manual_seed(0)
    description = vpeft.describe(EVERY[family]())
    tuned = vpeft.tune(
        description,
        LinearProbe(),
        head=lambda backbone, width: all_heads()["linear_map"].on(backbone, width, 16),
        verify=False,
    ).eval()
    images = description.inputs.example(4, torch.Generator().manual_seed(1))
    noisy = images.clone()
    height, width = images.shape[-2:]
    corner = noisy[..., : height // 2, width // 2 :]
    corner += torch.randn(corner.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        change = (tuned(noisy) - tuned(images)).abs().mean((0, 1))
    rows, columns = (max(1, size // 2) for size in change.shape)
    quarters = [
        float(change[up, left].mean())
        for up in (slice(rows), slice(-rows, None))
        for left in (slice(columns), slice(-columns, None))
    ]
    assert quarters[1] >= 0.85 * max(quarters), quarters


def _head_learns(tuned: TunedModel, loss: Tensor) -> None:
    assert loss.isfinite(), loss
    loss.backward()
    trained = dict(tuned.trainable())
    assert trained and all(name.startswith("head.") for name in trained), list(trained)
    dead = [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()]
    assert not dead, f"no gradient: {dead}"


def attach_for_task(family: str, name: str) -> None:
    """A method with the head of a task, for instance "lora for regression", on a family that the method fits.

    Raises:
        DeadPlace: what the method trains does not reach what the head reads.
        MissingPlace: the method fits the family, and leaves no map for the head.
    """
    method, task = name.split(" for ")
    kind, needs = all_methods()[method], learnt(task)
    bound = needs.bind(TinySet(needs.target_kind, (3, *ANY_SIZE[family][1][0])))
    refusal: vpeft.MissingPlace | None = None
    for fields in ({}, *kind.variants):
        torch.manual_seed(0)
        try:
            vpeft.tune(ANY_SIZE[family][0](), kind(**fields), task=bound, show=False)
        except vpeft.MissingPlace as error:
            if alone(kind(**fields), family):
                refusal = refusal or error
            continue
        return
    if refusal is not None and refusal_of(attach_default_head, family, task) is None:
        raise refusal


def alone(method: Method, family: str) -> bool:
    """Whether the method fits the family with a head for the pooled feature, so that it does not lack a place."""
    try:
        vpeft.tune(ANY_SIZE[family][0](), method, num_classes=2, verify=False, show=False)
    except vpeft.MissingPlace:
        return False
    return True


def refusal_of(attach: Callable[[str, str], None], family: str, name: str) -> vpeft.VpeftError | None:
    """The refusal that one of the functions above meets, or None where all attaches."""
    try:
        attach(family, name)
    except (vpeft.MissingPlace, DeadPlace) as error:
        return error.with_traceback(None)
    return None
