"""Average precision by the rule of Pascal VOC 2007: the mean of the precision at eleven levels of recall."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

LEVELS = 11


def voc_ap(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    true_boxes: Sequence[Tensor],
    difficult: Sequence[Tensor],
    iou: float = 0.5,
) -> float | None:
    """The eleven-point average precision of one class (Everingham et al., 2010, section 4.2).

    Detections of all images are gone through from the best score down. One is right where its IoU with the object of
    its image that it overlaps most is at least `iou` and that object was not found before; one that overlaps a
    difficult object most counts neither way. AP = 1/11 sum over r in {0, 0.1, ..., 1} of the largest precision at a
    recall of at least r.

    Sides are x2 - x1; the development kit of 2007 counts pixels, x2 - x1 + 1, which changes IoUs of small boxes.

    Args:
        boxes: for each image (N, 4), xyxy.
        scores: for each image (N,).
        true_boxes: for each image (M, 4).
        difficult: for each image bool (M,): objects that need not be found.
        iou: the overlap that is asked for.

    Returns:
        a number from 0 to 1, or None where no image has an object that counts.
    """
    count = sum(int((~one.bool()).sum()) for one in difficult)
    if not count:
        return None
    verdicts: list[tuple[float, bool]] = []
    for found, said, true, hard in zip(boxes, scores, true_boxes, difficult, strict=True):
        taken: set[int] = set()
        overlaps = box_iou(found.double(), true.double()) if len(true) else found.new_zeros((len(found), 1))
        for k in said.argsort(descending=True, stable=True).tolist():
            overlap, best = overlaps[k].max(0)
            near = len(true) > 0 and float(overlap) >= iou
            if near and bool(hard[best]):
                continue
            verdicts.append((float(said[k]), near and int(best) not in taken))
            if near:
                taken.add(int(best))
    verdicts.sort(key=lambda one: -one[0])
    right = torch.tensor([verdict for _, verdict in verdicts], dtype=torch.float64).cumsum(0)
    precision = right / torch.arange(1, len(right) + 1)
    # Recall is right / count; in whole numbers, 3 of 10 are the level 0.3 without rounding.
    best_at = [precision[(LEVELS - 1) * right >= level * count] for level in range(LEVELS)]
    return sum(float(one.max()) for one in best_at if len(one)) / LEVELS
