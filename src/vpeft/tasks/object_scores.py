"""How detectors are judged: average precision as COCO counts it, and by the rule of Pascal VOC 2007."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from ..errors import VpeftError, need_extra
from ..task import INSIDE, DetectedObjects
from .targets import label_names
from .voc_ap import voc_ap

if TYPE_CHECKING:
    from ..batch import Batch

# torchmetrics' names of the values that COCO's evaluation gives, and those that tables show.
COCO_NAMES = {
    "map": "AP",
    "map_50": "AP50",
    "map_75": "AP75",
    "map_small": "AP_small",
    "map_medium": "AP_medium",
    "map_large": "AP_large",
}
# pycocotools' own, in double precision: torchmetrics' defaults are rounded to single precision, which puts a recall of
# exactly 0.3 below the level 0.3.
IOUS: list[float] = np.linspace(0.5, 0.95, 10).tolist()
RECALLS: list[float] = np.linspace(0.0, 1.0, 101).tolist()
MASKS = "mask_"
VOC = "VOC_AP50"


class NoObjects(VpeftError):
    """No image of a data set has an object, so no precision is defined."""


class ObjectScores(MeanAveragePrecision):
    """Scores of detections against objects, both in pixels of the original images.

    Values: `AP` (mean over IoUs 0.50, 0.55, ..., 0.95 and over the classes that are there), `AP50`, `AP75`, those of
    objects of less than 32², less than 96² and more pixels, `AR` (with at most `detections`), `VOC_AP50` (the 11-point
    rule of VOC 2007, over the classes); with masks the same of masks, `mask_AP` and so on. What no object is there for
    is left out. Details: `per_class`. Crowds count as COCO counts them, and as difficult objects for VOC.

    Computed by torchmetrics with faster-coco-eval.

    Args:
        labels: names of the classes.
        masks: whether masks are judged too.
        detections: largest number of detections of an image that count.
    """

    def __init__(self, labels: Sequence[str], masks: bool = False, detections: int = 100) -> None:
        need_extra("faster_coco_eval", "dense")
        super().__init__(
            iou_type=("bbox", "segm") if masks else "bbox",
            iou_thresholds=IOUS,
            rec_thresholds=RECALLS,
            max_detection_thresholds=[1, min(10, detections), detections],
            class_metrics=True,
            backend="faster_coco_eval",
        )
        # A head gives as many detections as it is set to; the best of them count.
        self.warn_on_many_detections = False
        self.names, self.masks, self.most = tuple(labels), masks, detections

    def update(self, outputs: Sequence[Mapping[str, Tensor]], batch: Batch) -> None:  # type: ignore[override]
        """Count a batch: detections in pixels of the batch, and its targets."""
        found = [_detected(one, target, self.masks) for one, target in zip(outputs, batch.targets, strict=True)]
        true = [_true(target, self.masks) for target in batch.targets]
        super().update(found, true)

    def compute(self) -> dict[str, Any]:
        """Values by name, and the details.

        Raises:
            NoObjects: nothing is there to be found.
        """
        if not sum(len(one) for one in self.groundtruth_labels):
            raise NoObjects(
                "None of the images has an object, so average precision is not defined. Score images with objects."
            )
        made = super().compute()
        kinds = {"": "bbox_", MASKS: "segm_"} if self.masks else {"": ""}
        values: dict[str, Any] = {}
        present = torch.unique(torch.cat(self.groundtruth_labels)).tolist()
        names = label_names(self.names, max(len(self.names), *(k + 1 for k in present)))
        rows = {k: {"label": names[k], "objects": self._count(k)} for k in present}
        for prefix, theirs in kinds.items():
            for their_name, name in COCO_NAMES.items():
                value = float(made[f"{theirs}{their_name}"])
                if value >= 0:  # -1: there is no object of this size
                    values[f"{prefix}{name}"] = value
            values[f"{prefix}AR"] = float(made[f"{theirs}mar_{self.most}"])
            each = made[f"{theirs}map_per_class"].reshape(-1).tolist()
            for k, value in zip(made["classes"].reshape(-1).tolist(), each, strict=True):
                if k in rows:
                    rows[k][f"{prefix}AP"] = value
        for k, row in rows.items():
            row[VOC] = self._voc(k)
        found = [row[VOC] for row in rows.values() if row[VOC] is not None]
        if found:
            values[VOC] = sum(found) / len(found)
        return {**values, "per_class": list(rows.values())}

    def _count(self, k: int) -> int:
        return sum(int((one == k).sum()) for one in self.groundtruth_labels)

    def _voc(self, k: int) -> float | None:
        """AP50 of one class by the rule of VOC 2007."""
        found, true = (
            [
                box_convert(boxes.reshape(-1, 4), "xywh", "xyxy")[labels == k]
                for boxes, labels in zip(*pair, strict=True)
            ]
            for pair in ((self.detection_box, self.detection_labels), (self.groundtruth_box, self.groundtruth_labels))
        )
        scores = [
            score[labels == k] for score, labels in zip(self.detection_scores, self.detection_labels, strict=True)
        ]
        crowds = [
            crowd[labels == k] for crowd, labels in zip(self.groundtruth_crowds, self.groundtruth_labels, strict=True)
        ]
        return voc_ap(found, scores, true, crowds)


def in_original_pixels(boxes: Tensor, target: Mapping[str, Any]) -> Tensor:
    """Boxes (N, 4), xyxy in pixels of the batch, in pixels of the original image; see `Detection`."""
    if "size" not in target or "original" not in target:
        return boxes
    (height, width), (rows, columns) = target["size"], target["original"]
    across, down = float(columns) / float(width), float(rows) / float(height)
    return boxes * boxes.new_tensor([across, down, across, down])


def shapes_in_original(found: Mapping[str, Tensor], target: Mapping[str, Any]) -> Tensor:
    """What the masks of detections are made of: `DetectedObjects.shapes`.

    A head gives `box_masks` (N, 1, M, M), which are kept as they are; a host gives `masks` (N, 1, H, W), probabilities
    in pixels of the batch, of which masks in the original image are made.
    """
    if "box_masks" in found:
        return found["box_masks"]
    height, width = (int(side) for side in target["size"])
    size = (int(target["original"][0]), int(target["original"][1]))
    shown = found["masks"].reshape(-1, *found["masks"].shape[-2:])[:, :height, :width]
    if tuple(shown.shape[-2:]) != size and len(shown):
        shown = functional.interpolate(shown[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return shown.reshape(-1, *size) >= INSIDE if len(shown) else shown.new_zeros((0, *size), dtype=torch.bool)


def masks_in_original(found: Mapping[str, Tensor], target: Mapping[str, Any]) -> Tensor:
    """The masks bool (N, H, W) of detections, in the original image; their boxes are in pixels of the batch."""
    boxes = in_original_pixels(found["boxes"], target)
    rows, columns = (int(side) for side in target["original"])
    none: list[str] = [""] * len(boxes)
    shapes = shapes_in_original(found, target)
    masks = DetectedObjects(boxes, found["labels"], tuple(none), found["scores"], shapes, (rows, columns), 0).masks
    assert masks is not None
    return masks


def true_masks(target: Mapping[str, Any]) -> Tensor:
    """The true masks uint8 (N, H, W) in the original image, from those of the batch, each pixel from the nearest."""
    masks: Tensor = target["masks"]
    if "original" not in target or not len(masks):
        return masks.byte() if "original" not in target else masks.new_zeros((0, *map(int, target["original"]))).byte()
    height, width = (int(side) for side in target["size"])
    size = tuple(int(side) for side in target["original"])
    cut = masks[:, :height, :width]
    if tuple(cut.shape[-2:]) == size:
        return cut.byte()
    return functional.interpolate(cut[None].float(), size=size, mode="nearest-exact")[0].byte()


def _detected(found: Mapping[str, Tensor], target: Mapping[str, Any], masks: bool) -> dict[str, Tensor]:
    made = {
        "boxes": in_original_pixels(found["boxes"], target),
        "labels": found["labels"],
        "scores": found["scores"],
    }
    return {**made, "masks": masks_in_original(found, target).byte()} if masks else made


def _true(target: Mapping[str, Any], masks: bool) -> dict[str, Tensor]:
    labels: Tensor = target["labels"]
    made = {
        "boxes": in_original_pixels(target["boxes"], target),
        "labels": labels,
        "iscrowd": target["crowd"].long() if "crowd" in target else torch.zeros_like(labels),
    }
    if "area" in target:  # as the data set states it, in pixels of the original image
        made["area"] = target["area"]
    return {**made, "masks": true_masks(target)} if masks else made
