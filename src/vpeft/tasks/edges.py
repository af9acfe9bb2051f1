"""Whether each pixel is an edge."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from ..batch import Batch
from ..data.on_pixels import IGNORED
from ..task import Leading, TargetKind, register_task
from .binary_map_task import BinaryMapTask
from .map_outputs import logits_of, to_size

# Probabilities from which a pixel counts as an edge, of which the score takes the best.
THRESHOLDS = 19


@register_task("edges")
class Edges(BinaryMapTask):
    """Whether each pixel is an edge: logits (B, 1, h, w), judged by the F score at the best threshold (ODS)."""

    target_kind: ClassVar[TargetKind] = "edges"

    positive_weight: float = Field(default=0.95, gt=0, lt=1)
    """weight of the pixels that are edges in the loss; the others have 1 minus that"""
    tolerance: float = Field(default=0.0075, ge=0)
    """how far an edge may be from the true one, as a share of the image's diagonal; 0.011 for NYUD"""

    @property
    def leading(self) -> Leading:
        """The F score over the data set at the best threshold."""
        return Leading("ods_f")

    def share_of_yes(self, yes: Tensor, counted: Tensor) -> float:
        """The stated weight."""
        return self.positive_weight

    def metric(self) -> Metric:
        """See `EdgeScores`."""
        return EdgeScores(self.tolerance)


class EdgeScores(Metric):
    """Scores of logits (B, 1, h, w), brought to the targets' size, against edges (B, H, W) of 0 and 1.

    `ods_f` is the best over 19 thresholds of 2 P R / (P + R): P is the share of pixels that are said to be edges with a
    true edge at most `tolerance` times the diagonal away, R the share of true edges with one that is said, both over
    the data set. Distance is counted in steps to any of the eight neighbours. The program of the benchmark (BSDS, and
    seism in multi-task papers) thins what is said and assigns pixels one to one, so its numbers are lower.
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance
        # said pixels, those near a true edge, true pixels, those near a said one, for each threshold
        self.add_state("counts", torch.zeros(4, THRESHOLDS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch."""
        targets = batch.targets
        shares = to_size(logits_of(outputs), targets.shape[-2:])[:, 0].sigmoid()
        counted, true = targets != IGNORED, targets == 1
        reach = round(self.tolerance * math.hypot(*targets.shape[-2:]))
        near_true = _near(true, reach)
        for number in range(THRESHOLDS):
            said = (shares >= (number + 1) / (THRESHOLDS + 1)) & counted
            found = [said, said & near_true, true, true & _near(said, reach)]
            self.counts[:, number] += torch.stack([one.sum() for one in found])

    def compute(self) -> dict[str, Any]:
        """Values by name."""
        said, right, true, found = self.counts.double()
        if not bool(true.any()):
            return {"ods_f": math.nan, "precision": math.nan, "recall": math.nan, "threshold": math.nan}
        precision, recall = right / said.clamp(min=1), found / true.clamp(min=1)
        f = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        best = int(f.argmax())
        return {
            "ods_f": float(f[best]),
            "precision": float(precision[best]),
            "recall": float(recall[best]),
            "threshold": (best + 1) / (THRESHOLDS + 1),
        }


def _near(there: Tensor, reach: int) -> Tensor:
    """Pixels (B, H, W) from which one that is there is at most `reach` steps away."""
    if not reach:
        return there
    window = (2 * reach + 1, 1)
    wide = functional.max_pool2d(there[:, None].float(), window, stride=1, padding=(reach, 0))
    return functional.max_pool2d(wide, window[::-1], stride=1, padding=(0, reach))[:, 0] > 0
