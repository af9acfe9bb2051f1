"""One label out of K for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from vpeft.errors import VpeftError

# The usual start of a classifier on a pre-trained vision transformer (timm, and VPT, SSF, FacT after it).
HEAD_STD = 0.02


class TooFewLabels(VpeftError):
    """A classifier needs at least two different labels."""


class MeanPerClass(Metric):
    """The mean over classes of the share of each class's images that are recognised (Caltech101, Pets, Flowers).

    Classes without images do not count. torchmetrics' macro accuracy counts one, as 0, when something is taken for it.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    seen: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("right", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Count a batch: logits (B, K), class indices (B,)."""
        count = len(self.seen)
        self.seen += torch.bincount(target, minlength=count)
        self.right += torch.bincount(target[outputs.argmax(dim=1) == target], minlength=count)

    def compute(self) -> Tensor:
        """A scalar from 0 to 1; NaN before any image."""
        there = self.seen > 0
        return (self.right[there].double() / self.seen[there]).mean().float()


class Classification:
    """Classification into `labels`; raises `TooFewLabels` for fewer than two, or for repeated ones."""

    name = "classification"
    leading = "top1"

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        if len(set(self.labels)) < 2 or len(set(self.labels)) < len(self.labels):
            raise TooFewLabels(f"Classification needs two or more different labels, not {list(self.labels)[:10]}.")

    def head(self, width: int) -> nn.Linear:
        """A linear layer (B, width) -> (B, K): truncated normal weights of deviation 0.02, biases 0."""
        head = nn.Linear(width, len(self.labels))
        nn.init.trunc_normal_(head.weight, std=HEAD_STD)
        nn.init.zeros_(head.bias)
        return head

    def loss(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of logits (B, K), in single precision, with class indices (B,) or, for mixup, shares (B, K)."""
        return functional.cross_entropy(outputs.float(), target, label_smoothing=label_smoothing)

    def metric(self) -> MetricCollection:
        """`top1` and `mean_per_class`, and `top5` where there are more than five classes; all from 0 to 1.

        Updated with logits (B, K) and class indices (B,).
        """
        count = len(self.labels)
        metrics: dict[str, Metric | MetricCollection] = {
            "top1": MulticlassAccuracy(num_classes=count, average="micro"),
            "mean_per_class": MeanPerClass(count),
        }
        if count > 5:
            metrics["top5"] = MulticlassAccuracy(num_classes=count, average="micro", top_k=5)
        # Without groups: they would share the state of metrics that count alike, and these do not.
        return MetricCollection(metrics, compute_groups=False)
