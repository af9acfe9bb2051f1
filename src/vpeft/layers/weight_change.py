"""A changed weight, seen as a matrix: what the methods that reparametrise a projection have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class WeightChange(nn.Module, ABC):
    """W -> changed(W), with W as a matrix (out, rest): linear (out, in), convolution (out, in / groups * k * k).

    A weight in 16 bits is changed in single precision and rounded once.
    """

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        changed = self.changed(matrix.float() if matrix.dtype in HALF else matrix)
        return changed.reshape(weight.shape).to(weight.dtype)

    @abstractmethod
    def changed(self, weight: Tensor) -> Tensor:
        """The weight to use instead, (out, rest) as the given one."""


class WeightDelta(WeightChange):
    """W -> W + dW, where dW does not depend on W."""

    def changed(self, weight: Tensor) -> Tensor:
        return weight + self.delta()

    @abstractmethod
    def delta(self) -> Tensor:
        """dW (out, rest)."""


def divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
