"""One class for each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from ..batch import Batch
from ..data.joint import Fitting, MapTransform, semantic_transform
from ..data.preprocessing import Preprocessing
from ..errors import VpeftError
from ..head import HeadText, make_head
from ..task import BadOption, Leading, Prediction, TargetKind, UnsuitableTargets, register_task
from .map_outputs import auxiliary_of, logits_of, own_losses, to_size
from .map_task import MapTask, windows_of
from .targets import label_names, refusal, told_targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..backbones.backbone import Backbone


# The width of the edge of a mask, as a share of the image's diagonal, in the boundary IoU of COCO and ADE20K.
BOUNDARY_SHARE = 0.02


class NoClasses(VpeftError):
    """A head for classes whose names or number are not known."""


@register_task("semantic_segmentation", short="semantic")
class SemanticSegmentation(MapTask):
    """One of K classes for each pixel: logits (B, K, h, w), brought to the size of the mask, judged by mean IoU.

    Targets are masks (B, H, W) of class numbers that count in `labels`; pixels of `ignore` count nowhere. A head may
    give a mapping in training: `logits`, and further logits of any size, each an auxiliary output with its own loss.
    """

    target_kind: ClassVar[TargetKind] = "mask"

    ignore: int = 255
    """the class number of pixels that count nowhere"""
    dice: float = Field(default=0.0, ge=0)
    """weight of a Dice part of the loss, which counts small classes as much as large ones; 0 leaves it out"""
    class_weights: tuple[float, ...] = ()
    """a weight for each class in the cross-entropy, in the order of the labels; none counts all pixels alike"""
    auxiliary_weight: float = Field(default=0.4, ge=0)
    """weight of the loss of a head's auxiliary outputs, where it has any (upernet)"""
    boundary: bool = False
    """also score by boundary IoU, over the pixels near the edges of each class"""
    head_kind: HeadText = Field(default="linear_map", alias="head")
    """the head, with options where it has any: linear_map, segformer_map(channels=256), upernet(channels=512)"""

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
        self._require_weights(len(self.labels))
        return make_head(self.head_kind, backbone, width, len(self.labels))

    @property
    def padding(self) -> float:
        """The class number that counts nowhere."""
        return float(self.ignore)

    def map_transform(
        self,
        preprocessing: Preprocessing,
        training: bool,
        size: tuple[int, int] | None,
        shortest: tuple[int, ...] | None,
        longest: int | None,
        augment: str,
        fit: Fitting | None,
    ) -> MapTransform:
        """The joint transform of images and class maps."""
        made = semantic_transform(preprocessing, training, size, shortest, longest, augment, fit)
        return replace(made, fill=self.padding)

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
        outputs = logits_of(outputs)
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

        With `class_weights` w the cross-entropy is sum(w_t * l) / sum(w_t) over the pixels, of true class t and loss l.
        Auxiliary outputs add `auxiliary_weight` times their cross-entropy, each under its name.

        The Dice score of a class is 2 sum(p t) / (sum(p) + sum(t)) over the pixels of the batch that count, for the
        probabilities p and the truth t; classes that are not in the batch's masks are left out (Milletari et al., arXiv
        1606.04797). A whole model that computes losses by itself learns by these.
        """
        own = own_losses(outputs)
        if own is not None:
            return own
        masks = _as_masks(batch.targets)
        counted = masks != self.ignore
        logits = to_size(logits_of(outputs).float(), masks.shape[-2:])
        losses = {"cross_entropy": self._cross_entropy(logits, masks, counted)}
        for name, further in auxiliary_of(outputs).items():
            large = to_size(further.float(), masks.shape[-2:])
            losses[name] = self.auxiliary_weight * self._cross_entropy(large, masks, counted)
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

    def _cross_entropy(self, logits: Tensor, masks: Tensor, counted: Tensor) -> Tensor:
        """The mean over the pixels that count, weighted by their class."""
        if not self.class_weights:
            total = functional.cross_entropy(logits, masks, ignore_index=self.ignore, reduction="sum")
            return total / counted.sum().clamp(min=1)
        weights = self._weights(logits)
        total = functional.cross_entropy(logits, masks, weights, ignore_index=self.ignore, reduction="sum")
        share = weights[masks.where(counted, 0)] * counted
        return total / share.sum().clamp(min=torch.finfo(share.dtype).tiny)

    def _weights(self, logits: Tensor) -> Tensor:
        """The class weights (K) beside the logits."""
        self._require_weights(logits.shape[1])
        return torch.tensor(self.class_weights, dtype=logits.dtype, device=logits.device)

    def _require_weights(self, classes: int) -> None:
        """Raise `BadOption` unless there is a weight for each class, or none at all."""
        if self.class_weights and len(self.class_weights) != classes:
            raise BadOption(
                f"{self.name}.class_weights has {len(self.class_weights)} numbers, and there are {classes} classes:"
                f" {', '.join(self.labels[:10])}. Give one for each, in this order."
            )

    def monitor(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """The share of right pixels of each sample, among those at the centres of the output's cells."""
        outputs = logits_of(outputs)
        masks = functional.interpolate(
            _as_masks(batch.targets)[:, None].float(), outputs.shape[-2:], mode="nearest-exact"
        )[:, 0]
        counted = masks != self.ignore
        right = (outputs.detach().argmax(1) == masks) & counted
        return {"pixel_accuracy": (right.sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)).sum()}

    # -- how it is judged ---------------------------------------------------------------------------------------------

    def metric(self) -> Metric:
        """See `SegmentationScores`."""
        return SegmentationScores(self.labels, self.ignore, self.boundary)

    def predictions(self, outputs: Any, batch: Batch) -> list[Prediction]:
        """The class of each pixel (H, W), and the share of each class that is there, largest first.

        (H, W) is the size of the original image where the batch says it (as samples for prediction do), with `ignore`
        where the model was not shown it; else the size of the inputs.
        """
        logits = logits_of(outputs).float()
        size = batch.inputs.shape[-2:] if isinstance(batch.inputs, Tensor) else logits.shape[-2:]
        large, windows = to_size(logits, size), windows_of(batch)
        names = label_names(self.labels, logits.shape[1])
        found = []
        for number, one in enumerate(large):
            if windows is None:
                said = seen = one.argmax(0)
            else:
                values, part = windows[number].restored(one)
                seen = values.argmax(0)
                said = torch.full(windows[number].original, self.ignore, dtype=torch.int64)
                said[part] = seen
            counts = torch.bincount(seen.flatten(), minlength=len(names)).tolist()
            shares = {name: count / seen.numel() for name, count in zip(names, counts, strict=True) if count}
            ranked = sorted(shares.items(), key=lambda item: -item[1])
            rows = tuple({"label": name, "share": share} for name, share in ranked)
            name = batch.ids[number] if batch.ids else str(number)
            found.append(Prediction(name, rows, {"shares": shares}, said))
        return found

    def truth(self, batch: Batch) -> list[Prediction]:
        """The masks of a batch, as maps."""
        ids = batch.ids or tuple(str(number) for number in range(len(batch)))
        return [Prediction(name, (), {}, one) for name, one in zip(ids, _as_masks(batch.targets), strict=True)]

    def report(self, details: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
        """Intersection over union of each class."""
        columns = ("label", "pixels", "iou", "accuracy")
        rows = [[row[name] for name in columns] for row in details.get("per_class", ())]
        return [("Each class", columns, rows)] if rows else []

    def picture(self, details: Mapping[str, Any]) -> Figure | None:
        """The confusion matrix (the share of each true class, by row) beside a bar for each class's IoU."""
        rows = details.get("per_class")
        if not rows or not details.get("confusion"):
            return None
        from .confusion_picture import confusion_picture

        names, scores = [str(row["label"]) for row in rows], [row["iou"] for row in rows]
        return confusion_picture(details["confusion"], names, scores, "intersection over union", percent=True)


class SegmentationScores(Metric):
    """Scores of logits (B, K, h, w), brought to the masks' size, against masks (B, H, W), or a list of (H, W).

    Values: `miou` (the mean intersection over union of the classes that are there or are stated, over all pixels of the
    data set), `pixel_accuracy`, `mean_accuracy` (the mean over the classes that are there of the share of their pixels
    that is right), `loss` (the mean cross-entropy of a pixel), and `boundary_iou` where it is asked for. Details:
    `per_class` and `confusion`, a row for each true class. Counts are whole numbers.

    Boundary IoU (Cheng et al., arXiv 2103.16562) is the intersection over union of the pixels of each class that are
    at most d from its edge, on the prediction's side and on the truth's; d is 2 % of the image's diagonal. The edge of
    the image counts as an edge, and distance is counted in steps to any of the eight neighbours, as in the authors'
    code. They average over objects, and here counts are accumulated over the data set, as for `miou`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor
    loss_sum: Tensor
    edges: Tensor

    def __init__(self, labels: Sequence[str], ignore: int, boundary: bool = False) -> None:
        super().__init__()
        self.labels, self.ignore, self.boundary = tuple(labels), ignore, boundary
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self._count_in(max(1, len(self.labels)))

    def _count_in(self, classes: int) -> None:
        """Begin to count in so many classes."""
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")
        if self.boundary:  # pixels in the intersection and in the union of the edges, by class
            self.add_state("edges", torch.zeros(2, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch: logits (B, K, h, w), masks (B, H, W) as the batch's targets."""
        logits, masks = logits_of(outputs), _as_masks(batch.targets)
        classes = logits.shape[1]
        if classes != len(self.confusion):
            self._count_in(classes)
        logits = to_size(logits, masks.shape[-2:])
        counted = masks != self.ignore
        said = logits.argmax(1)
        pairs = masks[counted] * classes + said[counted]
        self.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self.loss_sum += functional.cross_entropy(logits.double(), masks, ignore_index=self.ignore, reduction="sum")
        if self.boundary:
            for true, one in zip(masks, said, strict=True):
                self.edges += edges_in_common(true, one, classes, self.ignore)

    def compute(self) -> dict[str, Any]:
        """Values by name, each from 0 to 1 but for the loss; and the details."""
        confusion = self.confusion
        pixels, right = int(confusion.sum()), confusion.diagonal()
        there = confusion.sum(1)
        union = there + confusion.sum(0) - right
        iou = right.double() / union.clamp(min=1)
        accuracy = right.double() / there.clamp(min=1)
        found: dict[str, Any] = {
            "miou": float(iou[union > 0].mean()),
            "pixel_accuracy": int(right.sum()) / pixels if pixels else math.nan,
            "mean_accuracy": float(accuracy[there > 0].mean()),
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
        if self.boundary:
            common, either = self.edges.double()
            found["boundary_iou"] = float((common / either.clamp(min=1))[either > 0].mean())
        return found


def edges_in_common(truth: Tensor, said: Tensor, classes: int, ignore: int) -> Tensor:
    """Pixels in the intersection and in the union of the edges of each class: masks (H, W) -> counts (2, K)."""
    height, width = truth.shape
    reach = max(1, round(BOUNDARY_SHARE * math.hypot(height, width)))
    counts = torch.zeros(2, classes, dtype=torch.int64, device=truth.device)
    counted = truth != ignore
    seen = torch.bincount(torch.cat((truth[counted], said[counted])), minlength=classes)
    for k in seen.nonzero().flatten().tolist():
        one, other = (_edge(mask == k, reach) & counted for mask in (truth, said))
        counts[0, k], counts[1, k] = (one & other).sum(), (one | other).sum()
    return counts


def _edge(mask: Tensor, reach: int) -> Tensor:
    """The pixels of a mask (H, W) from which a pixel outside of it is at most `reach` steps away."""
    outside = functional.pad((~mask)[None].float(), [reach] * 4, value=1.0)
    # A square window is a row of cells of a column of cells.
    near = functional.max_pool2d(outside, (2 * reach + 1, 1), stride=1)
    near = functional.max_pool2d(near, (1, 2 * reach + 1), stride=1)[0]
    return mask & (near > 0)


def _as_masks(targets: Any) -> Any:
    """Class numbers (B, H, W) or (B, 1, H, W) of any whole type as int64 (B, H, W); anything else as it is."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return targets
    masks = targets.as_subclass(Tensor)
    return (masks[:, 0] if masks.dim() == 4 and masks.shape[1] == 1 else masks).long()


def _batch_of_one(mask: Any) -> Any:
    return mask[None] if isinstance(mask, Tensor) else [mask]
