"""Objects: a box, a class and a mask for each."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..head import HeadText
from ..task import register_task
from .detection import Detection


@register_task("instance_segmentation", short="instance")
class InstanceSegmentation(Detection):
    """Boxes, classes and masks of objects, judged by average precision of the masks as COCO counts it.

    Targets are those of `detection` with `masks` (N, H, W), 1 on the object, for the image that the model is given.
    """

    masks: ClassVar[bool] = True

    head_kind: HeadText = Field(default="mask_rcnn", alias="head")
    """the head, with options where it has any: mask_rcnn, cascade_mask_rcnn(agnostic=false), mask_rcnn(channels=64)"""
    lead: Literal["AP", "AP50", "AP75", "VOC_AP50", "mask_AP", "mask_AP50", "mask_AP75"] = "mask_AP"  # type: ignore[assignment]
    """the metric by which epochs, searches and tables compare"""
