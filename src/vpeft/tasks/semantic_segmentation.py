"""One class for each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from ..batch import Batch
from ..errors import VpeftError
from ..head import HeadText, make_head
from ..task import Leading, Prediction, TargetKind, Task, UnsuitableTargets, register_task
from .targets import label_names, refusal, told_targets

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone


class NoClasses(VpeftError):
    """A head for classes whose names or number are not known."""


@register_task("semantic_segmentation")
class SemanticSegmentation(Task):
    """One of K classes for each pixel: logits (B, K, h, w), brought to the size of the mask, judged by mean IoU.

    Targets are masks (B, H, W) of class numbers that count in `labels`; pixels of `ignore` count nowhere.
    """

    target_kind: ClassVar[TargetKind] = "mask"

    ignore: int = 255
    """the class number of pixels that count nowhere"""
    dice: float = Field(default=0.0, ge=0)
    """weight of a Dice part of the loss, which counts small classes as much as large ones; 0 leaves it out"""
    head_kind: HeadText = Field(default="linear_map", alias="head")
    """the head, with options where it has any: linear_map, linear_map(dropout=0.0, batch_norm=true)"""

    @property
    def leading(self) -> Leading:
        """The mean over the classes of the intersection over union."""
        return Leading("miou")

    # -- what is read -------------------------------------------------------------------------------------------------

    def head(self, backbone: Backbone, width: int) -> nn.Module:
        """The head that `head_kind` names, with one output for each class; `NoClasses` where none is known."""
        if not self.labels:
            raise NoClasses(
                "The classes are not known yet. Give them, SemanticSegmentation(labels=(...)), or bind the task to data"
                " that name theirs, task.bind(train)."
            )
        return make_head(self.head_kind, backbone, width, len(self.labels))

    def check(self, train: Any) -> None:
        """Refuse targets that are no masks of class numbers, as far as the data set tells them.

        Raises:
            UnsuitableTargets: with the task that fits.
        """
        targets = told_targets(train)
        # Paths of masks, as torchvision's data sets tell, say nothing of what is in them.
        if targets is None or not len(targets) or (not isinstance(targets, Tensor) and isinstance(targets[0], str)):
            return
        whole = targets if isinstance(targets, Tensor) else targets[0]
        self._check_masks(whole if isinstance(targets, Tensor) else _batch_of_one(whole), len(self.labels) or None)

    def check_batch(self, outputs: Any, batch: Batch) -> None:
        """Refuse targets that are no masks of the model's classes."""
        if not isinstance(outputs, Tensor) or outputs.dim() != 4:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UnsuitableTargets(
                f"The task {self.name} needs outputs (samples, classes, rows, columns), and the model gives {found}."
                " Attach the method with this task, tune(model, method, task=task), which makes the head."
            )
        self._check_masks(batch.targets, outputs.shape[1])

    def _check_masks(self, masks: Any, classes: int | None) -> None:
        masks = _as_masks(masks)
        if isinstance(masks, list) and masks and all(isinstance(one, Tensor) and one.dim() == 2 for one in masks):
            sizes = sorted({tuple(one.shape) for one in masks})
            raise UnsuitableTargets(
                f"The masks of one batch have different sizes: {sizes[:5]}. Bring them to one size."
            )
        if not isinstance(masks, Tensor) or masks.dim() != 3 or masks.is_floating_point():
            odd = masks[0] if isinstance(masks, (Tensor, list, tuple)) and len(masks) else masks
            if isinstance(odd, Tensor) and odd.dim() == 2:
                raise UnsuitableTargets(
                    f"A mask holds {odd.dtype}, and the task {self.name} learns class numbers: give mask.long()."
                )
            raise refusal(self, odd)
        if classes is None or not masks.numel():
            return
        counted = masks[masks != self.ignore]
        if not counted.numel():
            return
        low, high = int(counted.min()), int(counted.max())
        if low < 0 or high >= classes:
            raise UnsuitableTargets(
                f"A mask holds class {low if low < 0 else high}, but there are {classes} classes (0 to {classes - 1}):"
                f" {', '.join(self.labels[:10])}. Pixels that do not count are {self.ignore}; another number is stated"
                " by ignore."
            )

    # -- how it is learnt ---------------------------------------------------------------------------------------------

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The mean cross-entropy of the pixels that count, and with `dice` that many times 1 - the mean Dice score.

        The Dice score of a class is 2 sum(p t) / (sum(p) + sum(t)) over the pixels of the batch that count, for the
        probabilities p and the truth t; classes that are not in the batch's masks are left out (Milletari et al., arXiv
        1606.04797).
        """
        masks = _as_masks(batch.targets)
        logits = to_size(outputs.float(), masks.shape[-2:])
        counted = masks != self.ignore
        sum_of_pixels = functional.cross_entropy(logits, masks, ignore_index=self.ignore, reduction="sum")
        losses = {"cross_entropy": sum_of_pixels / counted.sum().clamp(min=1)}
        if self.dice:
            truth = functional.one_hot(masks.where(counted, 0), logits.shape[1]).movedim(-1, 1) * counted[:, None]
            said = logits.softmax(1) * counted[:, None]
            over = (0, 2, 3)
            there = truth.sum(over)
            scores = 2 * (said * truth).sum(over) / (said.sum(over) + there).clamp(min=1e-6)
            present = there > 0
            mean = (scores * present).sum() / present.sum().clamp(min=1)
            losses["dice"] = self.dice * (1 - mean)
        return losses

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The share of right pixels of each sample, among those at the centres of the output's cells."""
        masks = functional.interpolate(
            _as_masks(batch.targets)[:, None].float(), outputs.shape[-2:], mode="nearest-exact"
        )[:, 0]
        counted = masks != self.ignore
        right = (outputs.detach().argmax(1) == masks) & counted
        return {"pixel_accuracy": (right.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `SegmentationScores`."""
        return SegmentationScores(self.labels, self.ignore)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The class of each pixel, (H, W) of the inputs, and the share of each class that is there, largest first."""
        size = batch.inputs.shape[-2:] if isinstance(batch.inputs, Tensor) else outputs.shape[-2:]
        maps = to_size(outputs.float(), size).argmax(1)
        names = label_names(self.labels, outputs.shape[1])
        found = []
        for number, one in enumerate(maps):
            counts = torch.bincount(one.flatten(), minlength=len(names)).tolist()
            shares = {name: count / one.numel() for name, count in zip(names, counts, strict=True) if count}
            ranked = sorted(shares.items(), key=lambda item: -item[1])
            rows = tuple({"label": name, "share": share} for name, share in ranked)
            name = batch.ids[number] if batch.ids else str(number)
            found.append(Prediction(name, rows, {"shares": shares}, one))
        return found

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """Intersection over union of each class."""
        columns = ("label", "pixels", "iou", "accuracy")
        rows = [[row[name] for name in columns] for row in details.get("per_class", ())]
        return [("Each class", columns, rows)] if rows else []


class SegmentationScores(Metric):
    """Scores of logits (B, K, h, w), brought to the masks' size, against masks (B, H, W).

    Values: `miou` (the mean intersection over union of the classes that are there or are stated, over all pixels of the
    data set), `pixel_accuracy`, `loss` (the mean cross-entropy of a pixel). Details: `per_class` and `confusion`, a row
    for each true class. Counts are whole numbers.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor
    loss_sum: Tensor

    def __init__(self, labels: Sequence[str], ignore: int) -> None:
        super().__init__()
        self.labels, self.ignore = tuple(labels), ignore
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self._count_in(max(1, len(self.labels)))

    def _count_in(self, classes: int) -> None:
        """Begin to count in so many classes."""
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, batch: Batch) -> None:
        """Count a batch: logits (B, K, h, w), masks (B, H, W) as the batch's targets."""
        masks, classes = _as_masks(batch.targets), outputs.shape[1]
        if classes != len(self.confusion):
            self._count_in(classes)
        logits = to_size(outputs, masks.shape[-2:])
        counted = masks != self.ignore
        pairs = masks[counted] * classes + logits.argmax(1)[counted]
        self.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self.loss_sum += functional.cross_entropy(logits.double(), masks, ignore_index=self.ignore, reduction="sum")

    def compute(self) -> dict[str, Any]:
        """Values by name, each from 0 to 1 but for the loss; and the details."""
        confusion = self.confusion
        pixels, right = int(confusion.sum()), confusion.diagonal()
        there = confusion.sum(1)
        union = there + confusion.sum(0) - right
        iou = right.double() / union.clamp(min=1)
        return {
            "miou": float(iou[union > 0].mean()),
            "pixel_accuracy": int(right.sum()) / pixels if pixels else math.nan,
            "loss": self.loss_sum.item() / pixels if pixels else math.nan,
            "confusion": confusion.tolist(),
            "per_class": [
                {
                    "label": name,
                    "pixels": int(there[k]),
                    "iou": float(iou[k]) if union[k] else None,
                    "accuracy": int(right[k]) / int(there[k]) if there[k] else None,
                }
                for k, name in enumerate(label_names(self.labels, len(confusion)))
            ],
        }


def _as_masks(targets: Any) -> Any:
    """Class numbers (B, H, W) or (B, 1, H, W) of any whole type as int64 (B, H, W); anything else as it is."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return targets
    masks = targets.as_subclass(Tensor)
    return (masks[:, 0] if masks.dim() == 4 and masks.shape[1] == 1 else masks).long()


def to_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W), bilinearly, about the centres of the cells."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _batch_of_one(mask: Any) -> Any:
    return mask[None] if isinstance(mask, Tensor) else [mask]
