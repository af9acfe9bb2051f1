"""KronA: a Kronecker product of two small matrices beside a projection or the MLP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register

Target = Literal["q", "k", "v", "proj", "fc1", "fc2"]


@register("krona", category="partial", family="reparameter", paper="2212.10650", year=2022, venue="arXiv")
class KronA(Method):
    """W' = W + s A (x) B, A (a1, a2), B (b1, b2), a1 b1 = D_out, a2 b2 = D_in, on chosen projections.

    Entry (i b1 + k, j b2 + l) of the product is A[i, j] B[k, l]; it is applied as A X B^T on x in rows (a2, b2).
    projection: KronA, on q and v; it folds into the weights.
    mlp: KronA_B, y = MLP(x) + s (A (x) B) x, x what the MLP reads. mlp_residual: KronA_res, which adds a trained
    multiple of x itself, from zero. Both are linear beside a nonlinear layer and do not fold.

    A starts Kaiming-uniform and B at zero, so step 0 is the frozen model. No code was published; which factor starts at
    zero, and that the multiple of x does, was not verified.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    form: Literal["projection", "mlp", "mlp_residual"] = "projection"
    """KronA, KronA_B or KronA_res"""
    targets: tuple[Target, ...] = ("q", "v")
    """projections of each block, for the form "projection\""""
    rows: int | None = Field(default=None, gt=0)
    """a1; None is the divisor of D_out next to its root, which is the smallest pair of factors"""
    columns: int | None = Field(default=None, gt=0)
    """a2; None is the divisor of D_in next to its root"""
    scale: float = 1.0
    """s; 1 to 16 in the paper"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.form != "projection":
            backbone.require("mlp")
        for block in backbone.blocks:
            if self.form != "projection":
                product = self._product(block.mlp.name, block.dim, block.dim)
                residual = self.form == "mlp_residual"
                yield block.mlp.parallel(ScaledResidual(product) if residual else product)
                continue
            for target in self.targets:
                place = block.projection(target)
                if place.weight[0, 0].numel() > 1 or place.weight.shape[1] != place.width_in:
                    raise MissingPlace(f"{place.name} is a convolution of a neighbourhood, and KronA changes linears.")
                yield place.parallel(self._product(place.name, place.width_in, place.width))

    def _product(self, name: str, width_in: int, width: int) -> KroneckerProduct:
        rows, columns = self.rows or _near_root(width), self.columns or _near_root(width_in)
        if width % rows or width_in % columns:
            raise MissingPlace(
                f"{name} maps {width_in} to {width} channels; {rows} rows and {columns} columns of A do not divide"
                " them."
            )
        return KroneckerProduct((rows, columns), (width // rows, width_in // columns), self.scale)


def _near_root(width: int) -> int:
    """The largest divisor of a width that is no larger than its root."""
    return next(divisor for divisor in range(math.isqrt(width), 0, -1) if width % divisor == 0)


class KroneckerProduct(nn.Module):
    """x (..., a2 b2) -> s (A (x) B) x, (..., a1 b1)."""

    def __init__(self, outer: tuple[int, int], inner: tuple[int, int], scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(outer), a=math.sqrt(5)))
        self.B = nn.Parameter(torch.zeros(inner))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.reshape(*x.shape[:-1], self.A.shape[1], self.B.shape[1])
        out: Tensor = self.scale * (self.A @ (pieces @ self.B.T)).flatten(-2)
        return out

    def weight_delta(self) -> tuple[Tensor, None]:
        """s A (x) B, (a1 b1, a2 b2)."""
        return self.scale * torch.kron(self.A, self.B), None


class ScaledResidual(nn.Module):
    """x -> product(x) + g x, g a number that starts at zero."""

    def __init__(self, product: KroneckerProduct) -> None:
        super().__init__()
        self.product = product
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.product(x)) + self.gain * x
