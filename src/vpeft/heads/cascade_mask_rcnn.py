"""Cascade Mask R-CNN: three networks on boxes, each on the boxes of the one before and with a stricter IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image, generalized_box_iou_loss, remove_small_boxes

from .object_head import Levels
from .region_head import RegionHead, box_network, classes_and_codes, masks_of

# Of each stage: the IoU from which a box holds an object, the weight of its losses, the weights of its box codes.
IOUS = (0.5, 0.6, 0.7)
WEIGHTS = (1.0, 0.5, 0.25)
CODES = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
# The weight of the GIoU loss in mmdetection's configurations for Swin.
GIOU_WEIGHT = 10.0

BoxLoss = Literal["smooth_l1", "giou"]


class CascadeMaskRCNNHead(RegionHead):
    """Cai and Vasconcelos, arXiv 1906.09756: three stages with the IoUs 0.5, 0.6 and 0.7 and loss weights 1, 1/2, 1/4.

    Each stage refines the boxes of the stage before. In evaluation the scores of a box are the mean of those that the
    three stages give it, and its corners those of the last stage. One mask network learns from the boxes that the
    first stage samples and serves the final boxes; mmdetection has one for each stage.

    Args:
        pyramid, channels, anchor_scale, anchor_sizes, ratios, proposals: see `RegionHead`.
        outputs: number of classes.
        convs, fcs, hidden, box_norm: the network of each stage, see `box_network`.
        agnostic: whether a stage has one set of corners for all classes, as in the paper; else one for each class.
        box_loss: "smooth_l1" on box codes, or "giou" on boxes, ten times.
        mask_channels: of the mask network.
        rois, score, nms, detections: see `RegionHead.box_heads`; each stage samples so many boxes.
    """

    kind = "cascade_mask_rcnn"

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
        agnostic: bool = True,
        box_loss: BoxLoss = "smooth_l1",
        mask_channels: int = 256,
        rois: int = 512,
        score: float = 0.05,
        nms: float = 0.5,
        detections: int = 100,
    ) -> None:
        if box_loss not in ("smooth_l1", "giou"):
            raise ValueError(f"box_loss is 'smooth_l1' or 'giou', not {box_loss!r}")
        super().__init__(pyramid, channels, anchor_scale, anchor_sizes, ratios, proposals)
        stages = [
            self.box_heads(
                outputs,
                box_network(channels, convs, fcs, hidden, box_norm),
                hidden,
                rois,
                score,
                nms,
                detections,
                iou,
                codes,
                agnostic,
            )
            for iou, codes in zip(IOUS, CODES, strict=True)
        ]
        self.roi_heads = CascadeRoIHeads(stages, box_loss, **self.mask_parts(outputs, channels, mask_channels))

    def of_boxes(self, levels: Levels, boxes: list[Tensor], sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Logits of the classes and codes of the boxes of each stage, and logits of the masks."""
        made = masks_of(self.roi_heads, levels, boxes, sizes)
        for number, stage in enumerate(self.roi_heads.stages):
            logits, codes = classes_and_codes(stage, levels, boxes, sizes)
            made |= {f"classes.{number}": logits, f"boxes.{number}": codes}
        return made


class CascadeRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's RoI heads, several in a row; those of the last stage suppress and count the final detections.

    Args:
        stages: RoI heads without masks, each with its own IoU and box codes.
        box_loss: see `CascadeMaskRCNNHead`.
        mask_roi_pool, mask_head, mask_predictor: the mask network.
    """

    def __init__(
        self,
        stages: Sequence[RoIHeads],
        box_loss: BoxLoss,
        mask_roi_pool: nn.Module,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
    ) -> None:
        last = stages[-1]
        super().__init__(
            None,
            None,
            None,
            fg_iou_thresh=last.proposal_matcher.high_threshold,
            bg_iou_thresh=last.proposal_matcher.low_threshold,
            batch_size_per_image=last.fg_bg_sampler.batch_size_per_image,
            positive_fraction=last.fg_bg_sampler.positive_fraction,
            bbox_reg_weights=last.box_coder.weights,
            score_thresh=last.score_thresh,
            nms_thresh=last.nms_thresh,
            detections_per_img=last.detections_per_img,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
        )
        self.stages = nn.ModuleList(stages)
        self.box_loss = box_loss

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps by name, proposals (N, 4), sizes and targets of each image -> detections, and losses in training."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        scores: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            logits, codes = classes_and_codes(stage, features, proposals, image_shapes)
            scores.append(logits.softmax(-1))
            if number + 1 < len(self.stages):
                proposals = _refined(stage, logits, codes, proposals, image_shapes)
        # The softmax in torchvision's function undoes the logarithm: scores of a box add up to 1.
        mean = torch.stack(scores).mean(0).clamp(min=torch.finfo(torch.float32).tiny).log()
        boxes, found, labels = self.postprocess_detections(mean, codes, proposals, image_shapes)
        masks = maskrcnn_inference(masks_of(self, features, boxes, image_shapes)["masks"], labels)
        return [
            {"boxes": one, "scores": score, "labels": label, "masks": mask}
            for one, score, label, mask in zip(boxes, found, labels, masks, strict=True)
        ], {}

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        stages: list[Any] = list(self.stages)
        for number, (stage, weight) in enumerate(zip(stages, WEIGHTS, strict=True)):
            sampled, matched, labels, wanted = stage.select_training_samples(list(proposals), targets)
            logits, codes = classes_and_codes(stage, features, sampled, image_shapes)
            of_classes, of_boxes = fastrcnn_loss(logits, codes, labels, wanted)
            if self.box_loss == "giou":
                of_boxes = _giou(stage, codes, sampled, labels, wanted)
            losses[f"loss_classifier_{number + 1}"] = weight * of_classes
            losses[f"loss_box_reg_{number + 1}"] = weight * of_boxes
            if not number:
                losses["loss_mask"] = self._mask_loss(features, sampled, matched, labels, image_shapes, targets)
            if number + 1 < len(self.stages):
                proposals = _refined(stage, logits, codes, sampled, image_shapes, labels)
                proposals = [boxes[remove_small_boxes(boxes, min_size=1e-2)] for boxes in proposals]
        return losses

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        positive = [label > 0 for label in labels]
        boxes = [box[there] for box, there in zip(proposals, positive, strict=True)]
        indices = [index[there] for index, there in zip(matched, positive, strict=True)]
        logits = masks_of(self, features, boxes, image_shapes)["masks"]
        truth, classes = [one["masks"] for one in targets], [one["labels"] for one in targets]
        loss: Tensor = maskrcnn_loss(logits, boxes, truth, classes, indices)
        return loss


def _refined(
    stage: RoIHeads,
    logits: Tensor,
    codes: Tensor,
    boxes: list[Tensor],
    image_shapes: list[tuple[int, int]],
    labels: list[Tensor] | None = None,
) -> list[Tensor]:
    """The boxes (N, 4) of each image as a stage moves them, for the true class of a box, else the likeliest one."""
    chosen = logits.detach()[:, 1:].argmax(1) + 1
    if labels is not None:
        true = torch.cat(labels)
        chosen = torch.where(true > 0, true, chosen)
    moved = stage.box_coder.decode(codes.detach(), boxes)
    moved = moved[torch.arange(len(moved), device=moved.device), chosen]
    parts = moved.split([len(one) for one in boxes])
    return [clip_boxes_to_image(one, size) for one, size in zip(parts, image_shapes, strict=True)]


def _giou(stage: RoIHeads, codes: Tensor, boxes: list[Tensor], labels: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Ten times the sum over the boxes with objects of 1 - GIoU, for each sampled box."""
    classes = torch.cat(labels)
    positive = torch.where(classes > 0)[0]
    moved = stage.box_coder.decode(codes, boxes)[positive, classes[positive]]
    truth = stage.box_coder.decode(torch.cat(wanted), boxes)[positive, 0]
    loss: Tensor = generalized_box_iou_loss(moved, truth, reduction="sum")
    return GIOU_WEIGHT * loss / max(1, classes.numel())
