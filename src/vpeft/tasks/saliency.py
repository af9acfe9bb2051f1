"""Whether each pixel stands out."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from ..batch import Batch
from ..data.on_pixels import IGNORED
from ..task import Leading, TargetKind, register_task
from .binary_map_task import BinaryMapTask
from .map_outputs import logits_of, to_size

# Probabilities from which a pixel counts as one that stands out, of which each score takes the best.
THRESHOLDS = 15
LOWEST, HIGHEST = 0.2, 0.9
# The weight of recall in the F score of saliency, Achanta et al. 2009.
BETA = 0.3


@register_task("saliency")
class Saliency(BinaryMapTask):
    """Whether each pixel stands out: logits (B, 1, h, w), judged by mean IoU and the best F score.

    The loss is class-balanced: pixels of 1 have the share of zeros in the batch as their weight.
    """

    target_kind: ClassVar[TargetKind] = "saliency"

    @property
    def leading(self) -> Leading:
        """The mean over images of the intersection over union, at the best threshold."""
        return Leading("miou")

    def share_of_yes(self, yes: Tensor, counted: Tensor) -> Tensor:
        """The share of zeros among the pixels of the batch that count."""
        return 1.0 - (yes & counted).sum() / counted.sum().clamp(min=1)

    def metric(self) -> Metric:
        """See `SaliencyScores`."""
        return SaliencyScores()


class SaliencyScores(Metric):
    """Scores of logits (B, 1, h, w), brought to the targets' size, against maps (B, H, W) of 0 and 1.

    With 15 thresholds of the probability from 0.2 to 0.9: `miou` is the best over the thresholds of the mean over
    images of the intersection over union, which is 1 for an image without anything where nothing is said; `max_f` the
    best of (1 + b) P R / (b P + R), b = 0.3, with precision P and recall R over all pixels of the data set. The
    probability is the sigmoid of the logit, taken once.
    """

    is_differentiable = False
    full_state_update = False

    counts: Tensor
    ious: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        # right, said, and true pixels for each threshold
        self.add_state("counts", torch.zeros(3, THRESHOLDS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("ious", torch.zeros(THRESHOLDS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Any, batch: Batch) -> None:
        """Count a batch."""
        targets = batch.targets
        shares = to_size(logits_of(outputs), targets.shape[-2:])[:, 0].sigmoid()
        counted, true = targets != IGNORED, targets == 1
        for number, threshold in enumerate(torch.linspace(LOWEST, HIGHEST, THRESHOLDS).tolist()):
            said = (shares >= threshold) & counted
            both, either = (said & true).sum((1, 2)), (said | true).sum((1, 2))
            self.counts[:, number] += torch.stack([both.sum(), said.sum(), true.sum()])
            self.ious[number] += torch.where(either > 0, both.double() / either.clamp(min=1), 1.0).sum()
        self.images += len(targets)

    def compute(self) -> dict[str, Any]:
        """Values by name."""
        images = int(self.images)
        right, said, true = self.counts.double()
        precision, recall = right / said.clamp(min=1), right / true.clamp(min=1)
        f = (1 + BETA) * precision * recall / (BETA * precision + recall).clamp(min=1e-12)
        return {
            "miou": float(self.ious.max()) / images if images else math.nan,
            "max_f": float(f.max()) if images else math.nan,
        }
