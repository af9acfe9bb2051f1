"""What training needs to know about a task, and nothing about images, backbones or methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torchmetrics import MetricCollection


@runtime_checkable
class Task(Protocol):
    """A kind of label space with its head, its loss and its metrics."""

    name: str
    """The name that adapter files carry."""
    labels: Sequence[str]
    """Names of the outputs, in their order."""
    leading: str
    """The metric by which epochs are compared; higher is better."""

    def head(self, width: int) -> nn.Module:
        """A fresh module from features (B, width) to outputs."""

    def loss(self, outputs: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a scalar."""

    def metric(self) -> MetricCollection:
        """Fresh metrics by name, updated with (outputs, target) per batch and computed at the end."""
