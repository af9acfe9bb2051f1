"""Objects: a box and a class for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchmetrics import Metric

from ..batch import Batch, Sample, as_sample
from ..data.joint import Fitting, detection_transform
from ..data.preprocessing import Preprocessing
from ..head import HeadText, make_head
from ..task import DetectedObjects, Leading, Prediction, TargetKind, Task, UnsuitableTargets, register_task
from .object_scores import MASKS, ObjectScores, in_original_pixels, shapes_in_original, true_masks
from .semantic_segmentation import NoClasses
from .targets import label_names, refusal, told_targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..backbones.backbone import Backbone

# Classes that a drawing of their precision has room for.
DRAWN = 80


@register_task("detection")
class Detection(Task):
    """Boxes of objects and their classes, judged by average precision as COCO and Pascal VOC count it.

    A target is a mapping with `boxes` float (N, 4), left, top, right and bottom in pixels of the image that the model
    is given; `labels` (N,), class numbers from 0; `crowd` bool (N,), groups that are not told apart; `size` (h, w), the
    part of that image which is no bar; `original` (H, W), the size of the image before it was resized; perhaps `area`
    (N,) in pixels of that image, 0 where it is not known, which scores of small and large objects go by. N may be 0.
    Predictions and scores are in pixels of the original image.
    """

    target_kind: ClassVar[TargetKind] = "objects"
    stacks_inputs: ClassVar[bool] = False
    masks: ClassVar[bool] = False

    head_kind: HeadText = Field(default="faster_rcnn", alias="head")
    """the head, with options where it has any: faster_rcnn, retinanet(finest=0), faster_rcnn(channels=64)"""
    lead: Literal["AP", "AP50", "AP75", "VOC_AP50"] = "AP"
    """the metric by which epochs, searches and tables compare"""
    confidence: float = Field(default=0.3, ge=0, le=1)
    """predictions below this score are not printed or drawn; scores count all of them"""
    size: int | tuple[int, int] | None = None
    """height and width that images are fitted to, or a square; by default the size of the backbone"""
    shortest: int | tuple[int, ...] | None = None
    """length of the shorter side; training draws from several, evaluation takes the largest; with `size` as well,
    training uses that and evaluation uses this"""
    longest: int | None = Field(default=None, ge=1)
    """limit of the longer side, where `shortest` is given"""
    fit: Fitting | None = None
    """how `size` is reached: longer (ratio kept, padded) or squash; by default as the backbone's preprocessing does"""
    image_changes: str = Field(default="", alias="augment")
    """changes of training images, joined by +: flip, photometric, crop, scale_jitter; else the data set's own"""
    multiple: int = Field(default=32, ge=1)
    """sides of a batch of images of several sizes are multiples of so many pixels"""

    @property
    def leading(self) -> Leading:
        """Average precision, by default the mean over ten IoUs."""
        return Leading(self.lead)

    # -- what is read -------------------------------------------------------------------------------------------------

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names; `NoClasses` where no class is known."""
        if not self.labels:
            raise NoClasses(
                f"The classes are not known yet. Give them, {type(self).__name__}(labels=(...)), or bind the task to"
                " data that name theirs, task.bind(train)."
            )
        return make_head(self.head_kind, backbone, width, len(self.labels))

    @property
    def shown_size(self) -> tuple[int, int] | Literal["own", "any"]:
        """That of `size`, or the backbone's own, where no shorter side is stated."""
        if self.shortest:
            return "any"
        return (self.size, self.size) if isinstance(self.size, int) else self.size or "own"

    def transforms(self, preprocessing: Preprocessing, augmentation: str, training: bool) -> Callable[..., Any]:
        """Image and objects together; `augment` or else the data set's augmentation, changes of data/joint.py."""
        fitted = self.size if training or not self.shortest else None
        return detection_transform(
            preprocessing,
            training,
            fitted,
            None if fitted or not self.shortest else self.shortest,
            self.longest if self.shortest and not fitted else None,
            augment=self.image_changes or augmentation,
            fit=self.fit,
            masks=self.masks,
        )

    def sample_of(self, image: Any, transform: Callable[..., Any], id: str) -> Sample:
        """A sample of an image without objects, which states its sizes."""
        nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
        pixels, target = transform(image, nothing)
        return Sample(pixels, target, id)

    def check(self, train: Any) -> None:
        """Refuse targets that are no objects, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        if targets is not None and len(targets):
            self._check(targets[0], "A target", None)

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Images (C, h, w) of any sizes with bars of 0 at the right and bottom: (B, C, H, W), and a list of targets.

        Raises:
            UnsuitableTargets: a target is of another kind, a class number is out of range, or a box is no box.
        """
        whole = [as_sample(sample) for sample in samples]
        sizes = {tuple(sample.input.shape[-2:]) for sample in whole}
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        if len(sizes) > 1 or self.shortest:
            height, width = (math.ceil(side / self.multiple) * self.multiple for side in (height, width))
        first = whole[0].input
        inputs = first.new_zeros((len(whole), first.shape[0], height, width))
        targets = []
        for row, sample in zip(inputs, whole, strict=True):
            rows, columns = sample.input.shape[-2:]
            row[:, :rows, :columns] = sample.input
            if sample.target is not None:
                self._check(sample.target, f"The target of {sample.id or 'a sample'}", len(self.labels) or None)
            size = {"size": (rows, columns), "original": (rows, columns)}
            targets.append({**size, **(sample.target or {})})
        ids = tuple(sample.id for sample in whole)
        return Batch(inputs, targets, ids if any(ids) else (), size=len(whole))

    def _check(self, target: Any, where: str, classes: int | None) -> None:
        if not isinstance(target, Mapping) or "boxes" not in target:
            raise refusal(self, target, where)
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or len(boxes) != len(labels):
            raise UnsuitableTargets(
                f"{where} has boxes of the shape {tuple(boxes.shape)} and {len(labels)} labels; give (N, 4) and (N,)."
            )
        if self.masks and len(target.get("masks", ())) != len(boxes):
            raise UnsuitableTargets(
                f"{where} has {len(boxes)} boxes and {len(target['masks']) if 'masks' in target else 'no'} masks, and"
                f" the task {self.name} learns the mask of each object. For boxes alone there is the task detection."
            )
        if not len(boxes):
            return
        odd = ~(torch.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
        if bool(odd.any()):
            numbers = [round(value, 2) for value in boxes[odd][0].tolist()]
            raise UnsuitableTargets(
                f"{where} has the box {numbers}, which is no box: left, top, right and bottom are wanted, with left <"
                " right and top < bottom. Boxes that give width and height are turned by"
                ' torchvision.ops.box_convert(boxes, "xywh", "xyxy").'
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (classes is not None and high >= classes):
            raise UnsuitableTargets(
                f"{where} holds class {low if low < 0 else high}, but there are {classes} classes (0 to"
                f" {(classes or 0) - 1}): {', '.join(self.labels[:10])}. They count from 0, without a background."
            )

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The losses that the head gives in training mode; see there."""
        losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
        if losses is None:
            raise UnsuitableTargets(
                f"The task {self.name} learns by the losses that its head gives in training mode with targets, and the"
                f" model gave {_described(outputs)}. Attach the method with this task, tune(model, method, task=task),"
                " and give each sample its objects."
            )
        found: dict[str, Tensor] = dict(losses)
        return found

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse outputs that are no detections or losses, and samples whose objects are not known."""
        if not isinstance(outputs, Mapping) and not _are_detections(outputs):
            raise UnsuitableTargets(
                f"The task {self.name} needs detections, and the model gives {_described(outputs)}. Attach the method"
                " with this task, tune(model, method, task=task), which makes the head."
            )
        for number, target in enumerate(batch.targets):
            if "boxes" not in target:
                raise UnsuitableTargets(
                    f"The objects of {batch.ids[number] if batch.ids else 'a sample'} are not known."
                )

    def metric(self) -> Metric:
        """See `ObjectScores`."""
        return ObjectScores(self.labels, self.masks)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The objects of each image, best first; those of at least `confidence` are printed."""
        found = []
        for number, (one, target) in enumerate(zip(outputs, batch.targets, strict=True)):
            masks = shapes_in_original(one, target) if self.masks else None
            boxes = in_original_pixels(one["boxes"], target)
            found.append(self._prediction(number, batch, target, boxes, one["labels"], one["scores"], masks))
        return found

    def truth(self, batch: Batch) -> list[Prediction]:
        """The true objects of each image, as a prediction that is sure of all."""
        found = []
        for number, target in enumerate(batch.targets):
            masks = true_masks(target).bool() if self.masks else None
            boxes, sure = in_original_pixels(target["boxes"], target), torch.ones(len(target["labels"]))
            found.append(self._prediction(number, batch, target, boxes, target["labels"], sure, masks))
        return found

    def _prediction(
        self,
        number: int,
        batch: Batch,
        target: Mapping[str, Any],
        boxes: Tensor,
        labels: Tensor,
        scores: Tensor,
        masks: Tensor | None,
    ) -> Prediction:
        names = label_names(self.labels, max([len(self.labels), *(k + 1 for k in labels.tolist())]))
        words = tuple(names[k] for k in labels.tolist())
        sure = int((scores >= self.confidence).sum())
        size = (int(target["original"][0]), int(target["original"][1]))
        objects = DetectedObjects(boxes, labels, words, scores, masks, size, sure)
        said = [
            {"label": word, "score": score, "box": [round(side, 2) for side in box]}
            for word, score, box in zip(words, scores.tolist(), boxes.tolist(), strict=True)
        ]
        rows = tuple(
            {
                "label": one["label"],
                "score": one["score"],
                **dict(zip(("left", "top", "right", "bottom"), one["box"], strict=True)),
            }
            for one in said[:sure]
        )
        name = batch.ids[number] if batch.ids else str(number)
        return Prediction(name, rows, {"size": list(size), "objects": said}, objects=objects)

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """Average precision of each class."""
        rows = details.get("per_class", ())
        columns = [name for name in ("label", "objects", "AP", "VOC_AP50", f"{MASKS}AP") if rows and name in rows[0]]
        return [("Each class", columns, [[row[name] for name in columns] for row in rows])] if rows else []

    def picture(self, details: Mapping[str, Any]) -> Figure | None:
        """A bar for the average precision of each class, best first; a second one for that of the masks."""
        rows = [row for row in details.get("per_class", ()) if "AP" in row]
        if not rows:
            return None
        from matplotlib.figure import Figure

        rows = sorted(rows, key=lambda row: row[self.bars[-1]])[-DRAWN:]
        figure = Figure(figsize=(6, 1 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        thick = 0.8 / len(self.bars)
        for place, name in enumerate(self.bars):
            at = [number - place * thick for number in range(len(rows))]
            axes.barh(at, [row[name] for row in rows], height=thick, label=name.replace("_", " "))
        axes.set_yticks(range(len(rows)), [row["label"].replace("$", r"\$") for row in rows], fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("average precision over IoU 0.50 to 0.95")
        if len(self.bars) > 1:
            axes.legend(loc="lower right")
        return figure

    @property
    def bars(self) -> tuple[str, ...]:
        """What `picture` draws of each class."""
        return ("AP", f"{MASKS}AP") if self.masks else ("AP",)


def _are_detections(outputs: Any) -> bool:
    return isinstance(outputs, list) and all(isinstance(one, Mapping) and "boxes" in one for one in outputs)


def _described(outputs: Any) -> str:
    if isinstance(outputs, Mapping):
        return f"a mapping of {', '.join(map(str, list(outputs)[:5])) or 'nothing'}"
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    return "detections" if _are_detections(outputs) else f"a {type(outputs).__name__}"
