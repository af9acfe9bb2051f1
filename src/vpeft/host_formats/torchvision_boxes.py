"""torchvision's detectors: a list of images and a list of mappings `boxes`, `labels` and, of Mask R-CNN, `masks`.

Detectors with regions of interest and SSD count the background as class 0; RetinaNet and FCOS have no class for it. A
model with one class more than there are labels has its first class for the background or unused, so labels begin with
1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.backbones.torchvision_hosts import counts_background
from vpeft.batch import Batch

from .host_format import HostFormat, extents, learnt, register_format, taken, target_of


@register_format
class TorchvisionBoxes(HostFormat):
    """Objects as boxes, and masks where the host has a mask head."""

    kinds = ("objects",)

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        return taken(host) == ("images", "targets")

    @property
    def gives_masks(self) -> bool:  # type: ignore[override]
        """Whether there is a mask head."""
        return getattr(getattr(self.host, "roi_heads", None), "mask_predictor", None) is not None

    @property
    def classes(self) -> int | None:
        return self._outputs - self._first

    @property
    def _first(self) -> int:
        """The number of the first label."""
        return int(counts_background(self.host))

    @property
    def _outputs(self) -> int:
        """Classes of the classification head, the background among them."""
        host: Any = self.host
        if hasattr(host, "roi_heads"):
            return int(host.roi_heads.box_predictor.cls_score.out_features)
        head = host.head.classification_head
        return int(head.num_columns if self._first else head.num_classes)

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sizes = extents(inputs, batch)
        images = [image[:, :height, :width] for image, (height, width) in zip(inputs, sizes, strict=True)]
        if not training:
            return (images,), {}
        targets = [self._target(target_of(batch, number), size) for number, size in enumerate(sizes)]
        return (images, targets), {}

    def _target(self, target: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
        kept = learnt(target)
        made = {"boxes": target["boxes"][kept].float(), "labels": target["labels"][kept] + self._first}
        if "masks" in target:
            made["masks"] = target["masks"][kept][:, : size[0], : size[1]]
        return made

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        if training:
            return {"losses": dict(outputs)}
        return [self._found(one, inputs) for one in outputs]

    def _found(self, found: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
        """The objects of one image, with labels from 0, and masks that fill the batch's frame."""
        made = {**found, "labels": found["labels"] - self._first}
        if "masks" in found:
            height, width = inputs.shape[-2:]
            masks = found["masks"]
            made["masks"] = F.pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]))
        return made
