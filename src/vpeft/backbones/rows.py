"""Which output rows of a fused projection belong to one place: the q, k or v of a qkv."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Rows:
    """Rows `start` to `stop` of each of `groups` equal parts of a projection's outputs.

    Most models keep all of q before all of k: one group. Some keep q, k and v of one head together: a group a head.
    """

    start: int
    stop: int
    groups: int = 1

    @property
    def count(self) -> int:
        """How many rows these are."""
        return (self.stop - self.start) * self.groups

    def take(self, whole: Tensor, dim: int = -1) -> Tensor:
        """These rows of `whole` along `dim`; with one group, a view."""
        if self.groups == 1:
            return whole.narrow(dim, self.start, self.stop - self.start)
        dim %= whole.dim()
        part = self._grouped(whole, dim).narrow(dim + 1, self.start, self.stop - self.start)
        return part.flatten(dim, dim + 1)

    def put(self, whole: Tensor, part: Tensor, dim: int = -1) -> Tensor:
        """A copy of `whole` in which these rows are `part`."""
        if self.groups == 1:
            return whole.slice_scatter(part, dim, self.start, self.stop)
        dim %= whole.dim()
        grouped = self._grouped(whole, dim).slice_scatter(self._grouped(part, dim), dim + 1, self.start, self.stop)
        return grouped.flatten(dim, dim + 1)

    def pad(self, part: Tensor, total: int) -> Tensor:
        """(rows, ...) -> (total, ...) with zeros in all other rows."""
        below = (0, 0) * (part.dim() - 1)
        if self.groups == 1:
            return F.pad(part, (*below, self.start, total - self.stop))
        return F.pad(self._grouped(part, 0), (*below, self.start, total // self.groups - self.stop)).flatten(0, 1)

    def _grouped(self, whole: Tensor, dim: int) -> Tensor:
        """The axis `dim` as two: the group, and the place in it."""
        return whole.reshape(*whole.shape[:dim], self.groups, -1, *whole.shape[dim + 1 :])
