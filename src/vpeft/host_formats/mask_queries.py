"""Mask2Former, EoMT and their relatives: `mask_labels` (N, H, W) and `class_labels` (N,) for each image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from vpeft.batch import Batch

from .host_format import HostFormat, learnt, number_of_labels, pixel_mask, register_format, taken, target_of

BEST = 100
IGNORED = 255


@register_format
class MaskQueries(HostFormat):
    """Objects as masks, or the regions of a class map, matched to queries."""

    kinds = ("objects", "mask")
    gives_masks = True

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        return {"pixel_values", "mask_labels", "class_labels"} <= set(taken(host))

    @property
    def classes(self) -> int | None:
        return number_of_labels(self.host)

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named: dict[str, Any] = {"pixel_values": inputs}
        if "pixel_mask" in taken(self.host):
            named["pixel_mask"] = pixel_mask(inputs, batch)
        if training:
            pairs = [self._regions(batch, number, inputs) for number in range(len(inputs))]
            named |= {"mask_labels": [masks for masks, _ in pairs], "class_labels": [labels for _, labels in pairs]}
        return (), named

    def _regions(self, batch: Batch, number: int, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (N, H, W) and class numbers (N,) of one image."""
        if self.kind == "mask":
            mask: Tensor = batch.targets[number]
            labels = torch.unique(mask)
            labels = labels[labels != IGNORED].long()
            return (mask[None] == labels[:, None, None]).float(), labels
        target = target_of(batch, number)
        kept = learnt(target)
        labels = target["labels"][kept]
        height, width = inputs.shape[-2:]
        if "masks" in target:
            given = target["masks"][kept].float()
            masks = F.pad(given, (0, width - given.shape[-1], 0, height - given.shape[-2]))
        else:  # boxes alone: the region is the box
            masks = inputs.new_zeros(len(kept), height, width)
            for mask, (left, top, right, bottom) in zip(
                masks, target["boxes"][kept].round().int().tolist(), strict=True
            ):
                mask[top:bottom, left:right] = 1.0
        return masks, labels

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        if training and self.kind == "objects":
            return {"losses": {"loss": outputs.loss.squeeze()}}
        classes = outputs.class_queries_logits.float().softmax(-1)[..., :-1]
        masks = F.interpolate(
            outputs.masks_queries_logits.float(), size=inputs.shape[-2:], mode="bilinear", align_corners=False
        ).sigmoid()
        if self.kind == "mask":
            logits = torch.einsum("bqc,bqhw->bchw", classes, masks).clamp(min=1e-6).log()
            return {"logits": logits, "losses": {"loss": outputs.loss.squeeze()}} if training else logits
        return [self._objects(row, mask) for row, mask in zip(classes, masks, strict=True)]

    def _objects(self, classes: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """The best pairs of query and class of one image, each with its mask; empty masks are left out."""
        best, at = classes.flatten().topk(min(BEST, classes.numel()))
        chosen = masks[torch.div(at, classes.shape[-1], rounding_mode="floor")]
        inside = chosen > 0.5
        sure = (chosen * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        kept = torch.nonzero(inside.flatten(1).any(1)).flatten()
        boxes = masks_to_boxes(inside[kept]) if len(kept) else chosen.new_zeros(0, 4)
        return {
            "boxes": boxes.float() + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]),
            "labels": (at % classes.shape[-1])[kept],
            "scores": (best * sure)[kept],
            "masks": chosen[kept][:, None],
        }
