"""MPC: matrix pattern constraints on low-rank updates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..errors import VpeftError
from ..layers.bottleneck import ACTIVATIONS
from ..layers.low_rank import LowRank
from ..method import Method, register
from .ssl import Target

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


class BentLowRank(nn.Module):
    """x -> B f(A x), A (R, D_in), B (D_out, R); with f it is not a linear map."""

    def __init__(self, width_in: int, width: int, rank: int, activation: str) -> None:
        super().__init__()
        straight = LowRank(width_in, width, rank)
        self.A, self.B, self.activation = straight.A, straight.B, activation

    def forward(self, x: Tensor) -> Tensor:
        inner = ACTIVATIONS[self.activation](nn.functional.linear(x, self.A))
        return nn.functional.linear(inner, self.B)


def low_rank_pairs(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """A (R, D_in) and B (D_out, R) of every layer inside `module` that has two such tensors."""
    for layer in module.modules():
        a, b = layer._parameters.get("A"), layer._parameters.get("B")
        if a is not None and b is not None and a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1]:
            yield a, b


@register("mpc", category="partial", family="reparameter", paper="2407.05417", year=2024, venue="arXiv")
class MPC(Method):
    """A pattern is asked of the two factors of every low-rank update dW = B A, A (R, D_in), B (D_out, R).

    o: ||A A^T - I||_F^2 + ||B^T B - I||_F^2 joins the loss (AdaLoRA's penalty).
    d: ||A A^T - I||_F^2 + ||B^T B - diag(B^T B)||_F^2: the columns of B orthogonal, of any length.
    n: a nonlinearity between the factors, y = W x + b + B f(A x); no penalty, and nothing to fold.

    By itself it adds low-rank updates of its own. Beside another low-rank method use `rank=0`: then it adds nothing and
    constrains that method's factors: `tune(model, LoRA(), MPC(rank=0))`. The penalty is the mean over all factors
    times `weight`. The published code does not square the norms: `squared`.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    pattern: Literal["o", "d", "n"] = "o"
    """o, d or n"""
    weight: float = Field(default=0.1, ge=0.0)
    """of the penalty"""
    squared: bool = True
    """the paper; False is the code"""
    rank: int = Field(default=8, ge=0)
    """R of the updates that it adds; 0 for none"""
    targets: tuple[Target, ...] = ("q", "v")
    """projections that it updates itself"""
    activation: Literal["relu", "gelu"] = "relu"
    """f of pattern n, which the paper does not name"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.pattern == "n" and not self.rank:
            raise VpeftError("Pattern n puts a nonlinearity between factors, so it needs its own: give a rank above 0.")
        for block in backbone.blocks if self.rank else ():
            for target in self.targets:
                place = block.projection(target)
                size = (place.width_in, place.width, self.rank)
                yield place.parallel(BentLowRank(*size, self.activation) if self.pattern == "n" else LowRank(*size))

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        if self.pattern == "n":
            return None
        norms = []
        for a, b in low_rank_pairs(tuned.adapter()):
            gram = b.T @ b
            eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            wanted = eye if self.pattern == "o" else gram.diag().diag()
            norms += [torch.linalg.matrix_norm(a @ a.T - eye), torch.linalg.matrix_norm(gram - wanted)]
        if not norms:
            raise VpeftError("MPC found no low-rank factors A (R, in), B (out, R). Give it a rank, or attach LoRA too.")
        found = torch.stack(norms)
        return self.weight * (found.square() if self.squared else found).mean()
