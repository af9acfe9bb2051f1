"""DETR and its relatives in transformers: `labels`, a list of `class_labels` and `boxes` for each image.

Boxes are (centre x, centre y, width, height) as fractions. Of models with an output for "no object" (DETR) these
are of the image without padding, as their positions are; of the others (RT-DETR, D-FINE, RF-DETR) of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from vpeft.batch import Batch

from .host_format import (
    HostFormat,
    extents,
    fields_given,
    learnt,
    number_of_labels,
    pixel_mask,
    register_format,
    taken,
    target_of,
)

BEST = 100
"""predictions that are kept for each image, as COCO scores them"""


@register_format
class DetrBoxes(HostFormat):
    """Objects as boxes, matched to queries."""

    kinds = ("objects",)

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        takes = taken(host)
        annotated = fields_given(host)
        known = "pred_boxes" in annotated if annotated else "pixel_mask" in takes
        return {"pixel_values", "pixel_mask", "labels"} <= set(takes) and known

    @property
    def classes(self) -> int | None:
        return number_of_labels(self.host)

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named: dict[str, Any] = {"pixel_values": inputs, "pixel_mask": pixel_mask(inputs, batch)}
        if training:
            named["labels"] = [
                self._label(target_of(batch, number), frame) for number, frame in enumerate(self._frames(inputs, batch))
            ]
        return (), named

    def _label(self, target: Any, frame: tuple[int, int]) -> dict[str, Tensor]:
        kept = learnt(target)
        boxes = target["boxes"][kept]
        height, width = frame
        boxes = box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])
        label = {"class_labels": target["labels"][kept], "boxes": boxes}
        if "masks" in target:
            label["masks"] = target["masks"][kept].float()
        return label

    def _frames(self, inputs: Tensor, batch: Batch) -> list[tuple[int, int]]:
        """The extent of which boxes are fractions."""
        whole = (int(inputs.shape[-2]), int(inputs.shape[-1]))
        return extents(inputs, batch) if self._has_no_object() else [whole] * len(inputs)

    def _has_no_object(self) -> bool:
        """Whether the last class is "no object": the class head then has one output more than there are labels."""
        heads = [
            module
            for name, module in self.host.named_modules()
            if isinstance(module, nn.Linear) and "class" in name.rpartition(".")[0] + name
        ]
        count = self.classes
        return bool(heads) and count is not None and heads[-1].out_features == count + 1

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        if training:
            return {"losses": {"loss": outputs.loss.squeeze()}}
        logits, found = outputs.logits.float(), []
        odd = logits.shape[-1] == (self.classes or 0) + 1
        scores = logits.softmax(-1)[..., :-1] if odd else logits.sigmoid()
        frames = extents(inputs, batch) if odd else [(int(inputs.shape[-2]), int(inputs.shape[-1]))] * len(inputs)
        for row, boxes, (height, width) in zip(scores, outputs.pred_boxes.float(), frames, strict=True):
            best, at = row.flatten().topk(min(BEST, row.numel()))
            queries = torch.div(at, row.shape[-1], rounding_mode="floor")
            pixels = box_convert(boxes[queries], "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
            found.append(
                {
                    "boxes": clip_boxes_to_image(pixels, (height, width)),
                    "labels": at % row.shape[-1],
                    "scores": best,
                }
            )
        return found
