"""Heads of detectors: equal to torchvision's models, the cascade to a restatement, and right for bars and odd sizes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, box_iou, nms
from torchvision.ops.poolers import LevelMapper

from vpeft.backbones.features import Feature, Features
from vpeft.batch import Batch
from vpeft.head import Head, get_head, raw_outputs
from vpeft.heads.cascade_mask_rcnn import CODES, IOUS, WEIGHTS, CascadeMaskRCNNHead
from vpeft.layers.anchors import LevelOfBox, StrideAnchors, StridePool

SIZE, CLASSES = 64, 3
MAPS: dict[str, Any] = {
    "places": ["stages.0", "stages.1"],
    "widths": [8, 12],
    "strides": [4, 8],
    "out_channels": None,
    "norm": "train",
}
SMALL: dict[str, Any] = {"channels": 16, "score": 0.0, "detections": 20}
TWO_STAGE: dict[str, Any] = {**SMALL, "hidden": 24, "rois": 32, "proposals": 50}
KINDS = {
    "retinanet": SMALL,
    "faster_rcnn": TWO_STAGE,
    "mask_rcnn": {**TWO_STAGE, "mask_channels": 8},
    "cascade_mask_rcnn": {**TWO_STAGE, "mask_channels": 8, "fcs": 1},
}


def made(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    head = get_head(kind)(pyramid=MAPS, outputs=CLASSES, **{**KINDS[kind], **more})
    with torch.no_grad():  # off their starts, at which all classes are equal
        for parameter in head.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return head


def features(count: int = 2, size: int = SIZE) -> Features:
    generator = torch.Generator().manual_seed(1)
    found = {
        name: Feature(torch.randn(count, size // stride, size // stride, width, generator=generator), stride=stride)
        for name, width, stride in zip(MAPS["places"], MAPS["widths"], MAPS["strides"], strict=True)
    }
    return Features(found, (size, size))


def targets() -> list[dict[str, Any]]:
    """Two images, one object that is a crowd, and one without objects."""
    boxes = torch.tensor([[4.0, 4, 30, 40], [32, 10, 60, 50], [0, 0, 64, 64]])
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 4:40, 4:30] = masks[1, 10:50, 32:60] = masks[2] = 1
    first = {
        "boxes": boxes,
        "labels": torch.tensor([0, 2, 1]),
        "crowd": torch.tensor([False, False, True]),
        "masks": masks,
    }
    second = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "crowd": torch.zeros(0, dtype=torch.bool),
        "masks": torch.zeros(0, SIZE, SIZE, dtype=torch.uint8),
    }
    return [{**one, "size": (SIZE, SIZE), "original": (SIZE, SIZE)} for one in (first, second)]


def batch() -> Batch:
    return Batch(torch.zeros(2, 3, SIZE, SIZE), targets(), size=2)


class Given(nn.Module):
    """A backbone that gives maps which were computed elsewhere."""

    def __init__(self, levels: OrderedDict[str, Tensor]) -> None:
        super().__init__()
        self.levels, self.out_channels = levels, next(iter(levels.values())).shape[1]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(self.levels)


def torchvision_twin(head: Any, kind: type[FasterRCNN]) -> FasterRCNN:
    """torchvision's whole model with the layers of a head, on the same maps."""
    with torch.no_grad():
        levels = head.levels(features())
    more: dict[str, Any] = {}
    if kind is MaskRCNN:
        more = {
            "mask_roi_pool": MultiScaleRoIAlign(["0", "1"], 14, 2),
            "mask_head": head.roi_heads.mask_head,
            "mask_predictor": head.roi_heads.mask_predictor,
        }
    twin = kind(
        Given(levels),
        min_size=SIZE,
        max_size=SIZE,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3),
        rpn_head=head.rpn.head,
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
        box_head=head.roi_heads.box_head,
        box_predictor=head.roi_heads.box_predictor,
        box_score_thresh=0.0,
        box_detections_per_img=20,
        box_batch_size_per_image=32,
        **more,
    )
    twin.transform.torch_choice = lambda sizes: sizes[0]  # which of one size: it would draw for that
    return twin


@pytest.mark.parametrize(("kind", "theirs"), [("faster_rcnn", FasterRCNN), ("mask_rcnn", MaskRCNN)])
def test_losses_and_detections_equal_those_of_torchvisions_model(kind: str, theirs: type[FasterRCNN]) -> None:
    head = made(kind)
    twin = torchvision_twin(head, theirs)
    images = [torch.zeros(3, SIZE, SIZE)] * 2
    given = [{**one, "labels": one["labels"] + 1} for one in targets()]
    for one in given:
        kept = ~one.pop("crowd")
        one |= {name: one[name][kept] for name in ("boxes", "labels", "masks")}
    torch.manual_seed(3)
    losses = head.train()(features(), batch())["losses"]
    torch.manual_seed(3)
    expected = twin.train()(images, given)
    assert {f"loss_{name}" for name in losses} == set(expected)
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[f"loss_{name}"].item(), rel=1e-5), name
    with torch.no_grad():
        found, twins = head.eval()(features(), batch()), twin.eval()(images)
    for one, other in zip(found, twins, strict=True):
        assert len(one["boxes"]) == 20
        assert torch.allclose(one["boxes"], other["boxes"], atol=1e-4)
        assert torch.allclose(one["scores"], other["scores"], atol=1e-6)
        assert torch.equal(one["labels"], other["labels"] - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_learns_and_raw_outputs_reach_every_tensor(kind: str) -> None:
    head: Head = made(kind)
    losses = head.train()(features(), batch())["losses"]
    assert all(value.dim() == 0 and value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None]
    head.zero_grad(set_to_none=True)
    with raw_outputs():
        raw = head.eval()(features(), None)
    sum((value * torch.randn(value.shape)).sum() for value in raw.values()).backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert set(head.train()(features(), None)) == set(raw)  # without targets there is nothing to learn


@pytest.mark.parametrize("kind", KINDS)
def test_detections_stay_inside_the_part_of_the_batch_that_is_the_image(kind: str) -> None:
    head = made(kind).eval()
    given = [{**one, "size": size} for one, size in zip(targets(), ((40, 56), (SIZE, SIZE)), strict=True)]
    with torch.no_grad():
        small, large = head(features(), batch().with_(targets=given))
    assert float(small["boxes"][:, 2].max()) <= 56 and float(small["boxes"][:, 3].max()) <= 40
    assert float(large["boxes"].max()) > 56
    for one in (small, large):
        assert one["labels"].min() >= 0 and one["labels"].max() < CLASSES
        assert bool((one["scores"].diff() <= 0).all())  # best first
        assert ("box_masks" in one) == kind.endswith("mask_rcnn")
        if "box_masks" in one:
            assert one["box_masks"].shape == (len(one["boxes"]), 1, 28, 28)
            assert float(one["box_masks"].min()) >= 0 and float(one["box_masks"].max()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_leaves_boxes_in_single_precision(kind: str) -> None:
    head = made(kind)
    with torch.autocast("cpu", torch.bfloat16):
        losses = head.train()(features(), batch())["losses"]
        with torch.no_grad():
            found = head.eval()(features(), batch())
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert found[0]["boxes"].dtype == torch.float32
    # in bfloat16, numbers between 32 and 64 are multiples of a quarter
    assert bool((found[0]["boxes"] * 4 % 1 != 0).any())


# -- the cascade -------------------------------------------------------------------------------------------------------


class Proposed(nn.Module):
    """Fixed proposals in place of a region proposal network's."""

    def __init__(self, boxes: list[Tensor]) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, *_: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        return list(self.boxes), {}


def moved(boxes: Tensor, codes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Boxes by the codes (dx, dy, dw, dh) of R-CNN, in plain arithmetic."""
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = (
        boxes[:, 0] + wide / 2 + codes[:, 0] / weights[0] * wide,
        boxes[:, 1] + high / 2 + codes[:, 1] / weights[1] * high,
    )
    wide, high = wide * (codes[:, 2] / weights[2]).exp(), high * (codes[:, 3] / weights[3]).exp()
    return torch.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2], 1)


def proposals() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    corner = 40 * torch.rand(2, 30, 2, generator=generator)
    sides = 6 + 18 * torch.rand(2, 30, 2, generator=generator)
    return list(torch.cat([corner, corner + sides], 2))


@pytest.mark.parametrize("agnostic", [True, False])
def test_a_cascade_averages_the_scores_of_its_stages_on_boxes_that_each_stage_moves(agnostic: bool) -> None:
    head: CascadeMaskRCNNHead = made("cascade_mask_rcnn", agnostic=agnostic).eval()
    head.rpn = Proposed(proposals())
    with torch.no_grad():
        found = head(features(), batch())
        levels = head.levels(features())
        boxes, scores = proposals(), []
        for stage, weights in zip(head.roi_heads.stages, CODES, strict=True):
            pooled = StridePool([4, 8], 7)(levels, boxes, [(SIZE, SIZE)] * 2)
            logits, codes = stage.box_predictor(stage.box_head(pooled))
            scores.append(logits.softmax(1))
            last, last_codes = boxes, codes.view(len(codes), CLASSES + 1, 4)
            best = logits[:, 1:].argmax(1) + 1
            whole = moved(torch.cat(boxes), last_codes[torch.arange(len(best)), best], weights).clamp(0, SIZE)
            boxes = list(whole.split(30))
        mean = torch.stack(scores).mean(0).split(30)
        codes_of = last_codes.split(30)
    assert len(scores) == 3
    for image, one in enumerate(found):
        rows: list[tuple[float, int, list[float]]] = []
        for k in range(1, CLASSES + 1):
            final = moved(last[image], codes_of[image][:, k], CODES[-1]).clamp(0, SIZE)
            for index in nms(final, mean[image][:, k], 0.5).tolist():
                rows.append((float(mean[image][index, k]), k - 1, final[index].tolist()))
        rows = sorted(rows, reverse=True)[:20]
        assert one["scores"].tolist() == pytest.approx([score for score, _, _ in rows], abs=1e-5)
        assert one["labels"].tolist() == [label for _, label, _ in rows]
        assert torch.allclose(one["boxes"], torch.tensor([box for _, _, box in rows]), atol=1e-3)


def test_each_stage_of_a_cascade_asks_for_more_overlap_and_weighs_half_as_much() -> None:
    """Restated without sampling: so many boxes are sampled that each stage learns from all of them."""
    head: CascadeMaskRCNNHead = made("cascade_mask_rcnn", rois=1000).train()
    for stage in head.roi_heads.stages:
        stage.fg_bg_sampler.positive_fraction = 1.0
    truth = targets()[0]
    known, classes = truth["boxes"][:2], truth["labels"][:2] + 1
    near = known.repeat(12, 1) + 6 * torch.rand(24, 4, generator=torch.Generator().manual_seed(6)) - 3
    head.rpn = Proposed([near.clamp(0, SIZE), proposals()[1]])
    losses = head(features(), batch())["losses"]
    levels = head.levels(features())
    boxes = [near.clamp(0, SIZE), proposals()[1]]
    positives = []
    for number, (stage, iou, weight, weights) in enumerate(
        zip(head.roi_heads.stages, IOUS, WEIGHTS, CODES, strict=True), start=1
    ):
        boxes = [torch.cat([boxes[0], known]), boxes[1]]
        overlap, which = box_iou(known, boxes[0]).max(0)
        labels = torch.cat([torch.where(overlap >= iou, classes[which], 0), torch.zeros(len(boxes[1])).long()])
        logits, codes = stage.box_predictor(stage.box_head(StridePool([4, 8], 7)(levels, boxes, [(SIZE, SIZE)] * 2)))
        expected = weight * functional.cross_entropy(logits, labels)
        assert losses[f"classifier_{number}"].item() == pytest.approx(expected.item(), rel=1e-4)
        positive = (labels > 0).nonzero().flatten()
        positives.append(len(positive))
        codes = codes.view(len(codes), CLASSES + 1, 4)
        wanted = coded(torch.cat(boxes)[positive], known[which[positive]], weights)
        off = (codes[positive, labels[positive]] - wanted).abs()
        smooth = torch.where(off < 1 / 9, 0.5 * off**2 * 9, off - 0.5 / 9).sum() / len(labels)
        assert losses[f"box_reg_{number}"].item() == pytest.approx((weight * smooth).item(), rel=1e-4)
        chosen = torch.where(labels > 0, labels, logits[:, 1:].argmax(1) + 1)
        whole = moved(torch.cat(boxes), codes[torch.arange(len(labels)), chosen], weights).detach().clamp(0, SIZE)
        boxes = list(whole.split([len(one) for one in boxes]))
    assert positives[0] > 4 and positives == sorted(positives, reverse=True), positives


def coded(boxes: Tensor, truth: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The codes that move boxes to their objects."""
    sides, true_sides = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    centres = (truth[:, :2] + true_sides / 2 - boxes[:, :2] - sides / 2) / sides
    return torch.cat([centres, (true_sides / sides).log()], 1) * torch.tensor(weights)


def test_the_giou_loss_of_a_cascade_is_nothing_for_boxes_that_are_right() -> None:
    head: CascadeMaskRCNNHead = made("cascade_mask_rcnn", box_loss="giou").train()
    for stage in head.roi_heads.stages:
        nn.init.zeros_(stage.box_predictor.bbox_pred.weight)
        nn.init.zeros_(stage.box_predictor.bbox_pred.bias)
    head.rpn = Proposed([targets()[0]["boxes"][:2], proposals()[1]])
    right = head(features(), batch())["losses"]
    assert right["box_reg_1"].item() == pytest.approx(0, abs=1e-4)
    head.rpn = Proposed([targets()[0]["boxes"][:2] + 3.0, proposals()[1]])
    wrong = head(features(), batch())["losses"]
    assert wrong["box_reg_1"].item() > 0.01


# -- anchors and pooling -----------------------------------------------------------------------------------------------


def test_anchors_are_torchvisions_where_its_strides_are_right_and_stay_at_their_cells_where_it_rounds() -> None:
    sizes, ratios = ((16.0,), (32.0,)), (0.5, 1.0, 2.0)
    images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
    maps = [torch.zeros(1, 4, 16, 24), torch.zeros(1, 4, 8, 12)]
    own, theirs = StrideAnchors([4, 8], sizes, ratios), AnchorGenerator(sizes, (ratios,) * 2)
    assert torch.equal(own(images, maps)[0], theirs(images, maps)[0])
    odd = ImageList(torch.zeros(1, 3, 60, 92), [(60, 92)])  # 7.5 and 11.5 cells: torchvision takes a stride of 7
    centres = own(odd, maps)[0][-3::1].reshape(-1, 2, 2).mean(1)
    assert torch.equal(centres[0], torch.tensor([88.0, 56.0]))
    half = [one.bfloat16() for one in maps]
    assert own(images, half)[0].dtype == torch.float32


def test_boxes_are_pooled_by_the_strides_whatever_the_first_image_was() -> None:
    levels = OrderedDict({"0": torch.randn(1, 2, 16, 16), "1": torch.randn(1, 2, 8, 8)})
    boxes = [torch.tensor([[4.0, 8.0, 40.0, 60.0]])]
    own, theirs = StridePool([4, 8], 7), MultiScaleRoIAlign(["0", "1"], 7, 2)
    assert torch.equal(own(levels, boxes, [(64, 64)]), theirs(levels, boxes, [(64, 64)]))
    own, theirs = StridePool([4, 8], 7), MultiScaleRoIAlign(["0", "1"], 7, 2)
    narrow = [(20, 20)]  # a small image in a large batch: torchvision takes a cell for a pixel and a quarter
    assert torch.equal(own(levels, boxes, narrow), own(levels, boxes, [(64, 64)]))
    assert not torch.allclose(theirs(levels, boxes, narrow), own(levels, boxes, narrow))


def test_the_level_of_a_box_is_torchvisions_and_the_next_coarser_one_where_a_level_is_missing() -> None:
    corner = 100 * torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    side = 2 ** (10 * torch.rand(500, 2, generator=torch.Generator().manual_seed(1)))
    boxes = torch.cat([torch.cat([corner, corner + side], 1), torch.tensor([[0.0, 0, 224, 224], [0, 0, 112, 112]])])
    levels = LevelOfBox([4, 8, 16, 32])([boxes])
    assert torch.equal(levels, LevelMapper(2, 5)([boxes]))
    assert set(levels.tolist()) == {0, 1, 2, 3} and levels[-2:].tolist() == [2, 1]
    sparse = LevelOfBox([4, 32])([boxes])
    assert torch.equal(sparse, (levels > 0).long())
