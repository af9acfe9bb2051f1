"""SVFT: a sparse matrix between the frozen singular vectors of each weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register
from .ssl import Target


@register("svft", category="partial", family="reparameter", paper="2405.19597", year=2024, venue="NeurIPS")
class SVFT(Method):
    """W' = U (S + M) V^T with W = U S V^T, U (out, n), V (in, n), n the smaller side; M (n, n) has few trained entries.

    plain: its diagonal. banded: all entries at most `band` off the diagonal. random: `entries` places drawn by `seed`.
    It folds into W. W itself stays, so U and V are additional frozen memory; they are computed when the method is
    attached, in single precision, and are not saved. The sign of each pair of vectors is fixed (the largest entry of
    each column of U is positive), as entries off the diagonal depend on it; a backbone with equal singular values has
    no such fixed vectors.

    M starts at zero, so step 0 is the frozen model. start="released" is what the code does: normal with deviation
    sqrt(2 / k), k entries, times sigmoid(g) with a trained number g from zero. On a convolution W is seen as (out, in
    times kernel). Left out: the pattern of the code's top-k, and truncation.
    """

    variants = ({"targets": ("conv", "fc1", "fc2")},)

    pattern: Literal["plain", "banded", "random"] = "plain"
    """which entries of M train"""
    band: int = Field(default=2, gt=0)
    """for "banded"; 2, 4, 8 or 16"""
    entries: int = Field(default=1000, gt=0)
    """for "random", in each matrix"""
    seed: int = 0
    """for "random\""""
    targets: tuple[Target, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
    """projections of each block"""
    start: Literal["zero", "released"] = "zero"
    """first values"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "zero"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        generator = torch.Generator().manual_seed(self.seed)
        for block in backbone.blocks:
            for place in (place for target in self.targets for place in block.stored(target)):
                weight = place.weight.detach()
                where = self._where(min(len(weight), weight[0].numel()), generator)
                yield place.reparametrize(BetweenSingularVectors(weight, where, self.start == "released"))

    def _where(self, size: int, generator: torch.Generator) -> Tensor:
        """(2, k): rows and columns of M's trained entries."""
        if self.pattern == "random":
            count = min(self.entries, size * size)
            chosen = torch.randperm(size * size, generator=generator, device="cpu")[:count].sort().values
            return torch.stack([chosen // size, chosen % size])
        row = torch.arange(size, device="cpu")
        band = 0 if self.pattern == "plain" else self.band
        return ((row[:, None] - row).abs() <= band).nonzero().T.contiguous()


class BetweenSingularVectors(nn.Module):
    """W (out, ...) -> W + U M V^T.

    Args:
        weight: the frozen W.
        where: rows and columns of M's trained entries, (2, k).
        released: start as the published code does, with a gate.
    """

    U: Tensor
    V: Tensor
    where: Tensor

    def __init__(self, weight: Tensor, where: Tensor, released: bool) -> None:
        super().__init__()
        U, _, Vh = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
        sign = U.gather(0, U.abs().argmax(dim=0, keepdim=True)).sign()
        self.register_buffer("U", U * sign, persistent=False)
        self.register_buffer("V", Vh.mT * sign, persistent=False)
        self.register_buffer("where", where, persistent=False)
        self.values = nn.Parameter(torch.zeros(where.shape[1]))
        self.gate = nn.Parameter(torch.zeros(1)) if released else None
        if released:
            nn.init.normal_(self.values, std=math.sqrt(2.0 / where.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        values = self.values if self.gate is None else self.values * self.gate.sigmoid()
        size = self.U.shape[1]
        middle = values.new_zeros(size * size).index_add(0, self.where[0] * size + self.where[1], values)
        delta = self.U @ middle.reshape(size, size) @ self.V.mT
        return weight + delta.reshape(weight.shape).to(weight.dtype)
