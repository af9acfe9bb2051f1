"""Mode approximation (Aurora, PETAL): all weight changes as slices of one tensor in CP or Tucker form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from .fact_tk import bank
from .fact_tt import TARGETS, Target
from .method import Method
from .registry import register


@register("petal", category="partial", family="reparameter", paper="2305.08381", year=2023, venue="NeurIPS")
class PETAL(Method):
    """The changes of all M matrices D x D are slices of one tensor: shared U and V, one vector p_m for each.

    cp (the paper): dW_m = s V diag(lambda * p_m) U, with U (R, D), V (D, R), lambda and p_m (R,).
    tucker (the released code): y = W x + b + s V drop((U x) S_m), S_m = sum_c C[:, :, c] p_m[c], C (R, R, R): FacT-TK.

    V starts at zero, so step 0 is the frozen model; it folds into the weights. This is the image tower of Aurora
    (2305.08381) and the bank of PETAL (2312.12458). Their gated query transformation, context term and experts act
    in text encoders only. A second tower is a second `tune` with its own bank.

    lambda starts at one, where the paper says nothing. The parts of fc1 and fc2 interleave with `tucker`, as in the
    code, and not with `cp`.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    core: Literal["cp", "tucker"] = "cp"
    """the form of the tensor"""
    rank: int = Field(default=64, gt=0)
    """R; the paper has 64 and 128"""
    scale: float = 1.0
    """s"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """before V"""
    targets: tuple[Target, ...] = TARGETS
    """projections of each block"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield from bank(backbone, self.targets, self.rank, self.scale, self.dropout, kind=self.core)
