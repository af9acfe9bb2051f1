"""The mean feature of each class, summed over any number of passes."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassMeans:
    """Sums (K, D) in double precision, and counts (K,); classes are added as they come."""

    def __init__(self) -> None:
        self.sums = torch.zeros(0, 0, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.int64)

    def add(self, features: Tensor, numbers: Tensor, classes: int) -> None:
        """Count features (B, D) of the classes `numbers` (B,), of which there are `classes` by now."""
        width = features.shape[1]
        if len(self.counts) < classes or self.sums.shape[1] != width:
            sums = torch.zeros(classes, width, dtype=torch.float64)
            counts = torch.zeros(classes, dtype=torch.int64)
            if len(self.counts):
                sums[: len(self.sums)], counts[: len(self.counts)] = self.sums, self.counts
            self.sums, self.counts = sums, counts
        self.sums.index_add_(0, numbers, features.double())
        self.counts += torch.bincount(numbers, minlength=classes)

    def means(self) -> Tensor:
        """(K, D) in single precision; zero for a class that was not seen."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()

    def tensors(self) -> dict[str, Tensor]:
        """Sums and counts."""
        return {"sums": self.sums, "counts": self.counts}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the tensors of `tensors`."""
        self.sums, self.counts = tensors["sums"].clone(), tensors["counts"].clone()
