"""Two-stage detectors: proposals on a feature pyramid, and a network on the features of each proposed box."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..head import Head
from ..layers.anchors import StrideAnchors, StridePool
from ..layers.feature_pyramid import NormKind, StageMaps
from .object_head import Detections, Levels, ObjectHead

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone

# Rows and columns that a box is pooled to, for its class and corners, and for its mask (half of the mask's).
BOX_SIZE, MASK_SIZE = 7, 14
MASK_CONVS = 4
NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d}


class RegionHead(ObjectHead):
    """A region proposal network, and RoI heads that a subclass makes, in torchvision's implementation.

    The pyramid has one level more than the maps, the coarsest subsampled by two; proposals come from all levels, boxes
    are pooled from those of the maps (Lin et al., arXiv 1612.03144). Labels of the RoI heads count from 1, as 0 is the
    background; those that go in and out of this module count from 0.

    Args:
        pyramid: settings of the `StageMaps`.
        channels: of the pyramid.
        anchor_scale: side of a level's anchors, in strides of that level.
        anchor_sizes: in place of it, the sides of the anchors in pixels, a list for each level.
        ratios: height / width of the anchors.
        proposals: boxes of an image that the RoI heads look at in evaluation; twice as many in training, of which they
            sample.
    """

    roi_heads: RoIHeads

    def __init__(
        self,
        pyramid: Mapping[str, Any],
        channels: int,
        anchor_scale: float,
        anchor_sizes: Sequence[Sequence[float]] | None,
        ratios: Sequence[float],
        proposals: int,
    ) -> None:
        super().__init__(pyramid, channels, LastLevelMaxPool())
        strides = [*self.maps.strides, 2 * self.maps.strides[-1]]
        sizes = anchor_sizes or [[anchor_scale * stride] for stride in strides]
        if len(sizes) != len(strides):
            raise ValueError(f"anchor_sizes has {len(sizes)} lists and there are {len(strides)} levels: {strides}")
        anchors = StrideAnchors(strides, sizes, ratios)
        self.rpn = RegionProposalNetwork(
            anchors,
            ProposalHead(channels, anchors.num_anchors_per_location()[0]),
            # torchvision's values, which are those of the papers
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * proposals, "testing": proposals},
            post_nms_top_n={"training": 2 * proposals, "testing": proposals},
            nms_thresh=0.7,
        )

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the maps of a backbone; `level_norm`, the norm of the `StageMaps`, and `place` are theirs."""
        rest = dict(options)
        norm: NormKind = rest.pop("level_norm", "train")
        maps = StageMaps.on(backbone, norm=norm, place=rest.pop("place", None)).settings
        if len(maps["places"]) == 1 and "channels" in rest:  # all levels are made here, as wide as the head asks
            maps = {**maps, "out_channels": rest["channels"]}
        return cls.with_options(rest, pyramid=maps, outputs=outputs)

    def losses(self, images: ImageList, levels: Levels, targets: list[Detections]) -> dict[str, Tensor]:
        """The losses of the proposals and of the RoI heads."""
        counted = [{**one, "labels": one["labels"] + 1} for one in targets]
        proposals, of_proposals = self.rpn(images, levels, counted)
        _, of_boxes = self.roi_heads(levels, proposals, images.image_sizes, counted)
        return {**of_proposals, **of_boxes}

    def found(self, images: ImageList, levels: Levels) -> list[Detections]:
        """The detections of each image."""
        proposals, _ = self.rpn(images, levels)
        found, _ = self.roi_heads(levels, proposals, images.image_sizes)
        # torchvision's masks are those of the boxes, until its models paste them into the image
        named = [{"box_masks" if name == "masks" else name: value for name, value in one.items()} for one in found]
        return [{**one, "labels": one["labels"] - 1} for one in named]

    def raw(self, images: ImageList, levels: Levels) -> Mapping[str, Tensor]:
        """Objectness and box codes at each anchor, and what the RoI heads say of the whole image as one box."""
        objectness, codes = self.rpn.head(list(levels.values()))
        made = {f"objectness.{k}": one for k, one in enumerate(objectness)}
        made |= {f"codes.{k}": one for k, one in enumerate(codes)}
        height, width = images.tensors.shape[-2:]
        whole = torch.tensor([[0.0, 0.0, width, height]], device=images.tensors.device)
        return {**made, **self.of_boxes(levels, [whole] * len(images.image_sizes), images.image_sizes)}

    @abstractmethod
    def of_boxes(self, levels: Levels, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """The raw outputs of the RoI heads for given boxes."""

    def box_heads(
        self,
        outputs: int,
        network: nn.Module,
        hidden: int,
        rois: int,
        score: float,
        nms: float,
        detections: int,
        iou: float = 0.5,
        codes: tuple[float, float, float, float] | None = None,
        agnostic: bool = False,
    ) -> RoIHeads:
        """RoI heads without masks.

        Args:
            outputs: number of classes.
            network: from the pooled features of a box to a vector, see `box_network`.
            hidden: length of that vector.
            rois: boxes of an image that are learnt from in a step; a quarter of them hold objects, if there are enough.
            score: detections below this score are left out.
            nms: IoU from which the weaker of two detections of a class is left out.
            detections: largest number of detections in an image.
            iou: from which a box holds an object.
            codes: weights of the box codes; None for torchvision's.
            agnostic: see `BoxPredictor`.
        """
        return RoIHeads(
            StridePool(self.maps.strides, BOX_SIZE),
            network,
            BoxPredictor(hidden, outputs, agnostic),
            fg_iou_thresh=iou,
            bg_iou_thresh=iou,
            batch_size_per_image=rois,
            positive_fraction=0.25,
            bbox_reg_weights=codes,
            score_thresh=score,
            nms_thresh=nms,
            detections_per_img=detections,
        )

    def mask_parts(self, outputs: int, channels: int, width: int) -> dict[str, nn.Module]:
        """The parts of a mask head, by torchvision's names: four convolutions and a deconvolution, `width` channels."""
        return {
            "mask_roi_pool": StridePool(self.maps.strides, MASK_SIZE),
            "mask_head": MaskRCNNHeads(channels, (width,) * MASK_CONVS, 1),
            "mask_predictor": MaskRCNNPredictor(width, width, outputs + 1),
        }


def classes_and_codes(
    heads: RoIHeads, levels: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Logits (N, K + 1) and codes (N, 4 (K + 1)) of all boxes of all images."""
    logits, codes = heads.box_predictor(heads.box_head(heads.box_roi_pool(levels, boxes, sizes)))
    return logits, codes


def masks_of(
    heads: RoIHeads, levels: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
) -> dict[str, Tensor]:
    """The logits of the masks of given boxes, for all classes."""
    pooled = heads.mask_roi_pool(levels, boxes, sizes)
    return {"masks": heads.mask_predictor(heads.mask_head(pooled))}


class ProposalHead(RPNHead):  # type: ignore[misc]
    """torchvision's, with results in single precision: box coordinates need it under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of all levels -> objectness and box codes of all levels."""
        objectness, codes = super().forward(x)
        return [one.float() for one in objectness], [one.float() for one in codes]


def box_network(channels: int, convs: int, fcs: int, hidden: int, norm: str | None) -> FastRCNNConvFCHead:
    """From the pooled features of a box (channels, 7, 7) to a vector: `convs` convolutions, `fcs` linear layers.

    Args:
        channels: of the features and the convolutions.
        convs, fcs: how many.
        hidden: width of the linear layers.
        norm: "batch" for a BatchNorm behind each convolution; None for none.
    """
    if norm is not None and norm not in NORMS:
        raise ValueError(f"the norm of the convolutions is one of {', '.join(NORMS)}, or None; not {norm!r}")
    layer = None if norm is None else NORMS[norm]
    return FastRCNNConvFCHead((channels, BOX_SIZE, BOX_SIZE), [channels] * convs, [hidden] * fcs, norm_layer=layer)


class BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """torchvision's classes and box codes of each box, in single precision; `agnostic` has one code for all classes.

    Returns logits (N, outputs + 1), the background first, and codes (N, 4 (outputs + 1)), for `agnostic` the same for
    each class.
    """

    def __init__(self, hidden: int, outputs: int, agnostic: bool = False) -> None:
        super().__init__(hidden, outputs + 1)
        self.repeats = outputs + 1 if agnostic else 1
        if agnostic:
            self.bbox_pred = nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, hidden) -> logits and codes."""
        logits, codes = super().forward(x)
        return logits.float(), codes.float().repeat(1, self.repeats)
