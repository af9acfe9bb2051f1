"""Faster R-CNN on a feature pyramid: proposals, then the class and the corners of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .object_head import Levels
from .region_head import RegionHead, box_network, classes_and_codes


class FasterRCNNHead(RegionHead):
    """Ren et al., arXiv 1506.01497, on a pyramid (Lin et al., arXiv 1612.03144), in torchvision's implementation.

    Args:
        pyramid, channels, anchor_scale, anchor_sizes, ratios, proposals: see `RegionHead`.
        outputs: number of classes.
        convs, fcs, hidden, box_norm: the network on each box, see `box_network`.
        rois, score, nms, detections: see `RegionHead.box_heads`.
    """

    kind = "faster_rcnn"

    def __init__(
        self,
        pyramid: Mapping[str, Any],
        outputs: int,
        channels: int = 256,
        anchor_scale: float = 8.0,
        anchor_sizes: Sequence[Sequence[float]] | None = None,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        proposals: int = 1000,
        convs: int = 0,
        fcs: int = 2,
        hidden: int = 1024,
        box_norm: str | None = None,
        rois: int = 512,
        score: float = 0.05,
        nms: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__(pyramid, channels, anchor_scale, anchor_sizes, ratios, proposals)
        network = box_network(channels, convs, fcs, hidden, box_norm)
        self.roi_heads = self.box_heads(outputs, network, hidden, rois, score, nms, detections)

    def of_boxes(self, levels: Levels, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Logits of the classes and codes of the boxes."""
        logits, codes = classes_and_codes(self.roi_heads, levels, boxes, sizes)
        return {"classes": logits, "boxes": codes}
