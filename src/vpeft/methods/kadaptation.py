"""KAdaptation: updates of queries and values as sums of Kronecker products with shared slow factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register


@register("kadaptation", category="partial", family="reparameter", paper="2203.16329", year=2023, venue="AAAI")
class KAdaptation(Method):
    """q = W_q x + s drop(dW) x + b, and v likewise; dW = sum_i A_i (x) (u_i v_i), i = 1..t.

    A_i = l_i r_i (t, t) of rank one is shared by all blocks, one bank for queries and one for values; u_i (D / t, 1)
    and v_i (1, D / t) belong to each block and target, b (D,) to each block. It folds into weights and biases.

    l, r and u start uniform within 0.01, v and b at zero: step 0 is the frozen model. Departures from the released
    code, which starts u and v both at zero, so that they never learn, uses the query's factors for values, mixes tokens
    with heads in a reshape, and adds the change of q behind its scaling: this is the paper's equation. Which of u and v
    starts at zero, and s for this form, were not verified.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"terms": 8}, {"terms": 4})

    terms: int = Field(default=32, gt=0)
    """t; it must divide the width"""
    scale: float = 160.0
    """s; the code's 128 / 4 * 5"""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """on the entries of dW"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.q", "attn.v")
        banks = {"q": SlowFactors(self.terms), "v": SlowFactors(self.terms)}
        for block in backbone.blocks:
            shift = SharedBias(block.attn.q.width)
            for letter, bank in banks.items():
                place = block.projection(letter)
                sizes = place.width, place.width_in
                if any(size % self.terms for size in sizes) or place.width != len(shift.b):
                    raise MissingPlace(
                        f"{place.name} maps {place.width_in} to {place.width} channels; {self.terms} terms must divide"
                        " both, and queries and values must be as wide as each other."
                    )
                yield place.parallel(KroneckerSum(bank, shift, *sizes, self.scale, self.dropout))


class SlowFactors(nn.Module):
    """l (t, t) and r (t, t), whose rows make A_i = l_i r_i."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.empty(terms, terms).uniform_(-0.01, 0.01)) for _ in range(2))


class SharedBias(nn.Module):
    """b (D,), one for the queries and values of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(width))


class KroneckerSum(nn.Module):
    """x (..., in) -> s drop(dW) x + b."""

    def __init__(
        self, bank: SlowFactors, shift: SharedBias, width: int, width_in: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.bank, self.shift, self.scale = bank, shift, scale
        terms = len(bank.left)
        self.u = nn.Parameter(torch.empty(terms, width // terms).uniform_(-0.01, 0.01))
        self.v = nn.Parameter(torch.zeros(terms, width_in // terms))
        self.dropout = nn.Dropout(dropout)

    def delta(self) -> Tensor:
        """sum_i A_i (x) (u_i v_i), (out, in)."""
        outputs = torch.einsum("ia,ik->iak", self.bank.left, self.u).flatten(1)
        inputs = torch.einsum("ic,il->icl", self.bank.right, self.v).flatten(1)
        return outputs.T @ inputs

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scale * self.dropout(self.delta()), self.shift.b)

    def weight_delta(self) -> tuple[Tensor, Tensor]:
        """The changes of weight (out, in) and bias (out,)."""
        return self.scale * self.delta(), self.shift.b
