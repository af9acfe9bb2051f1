"""LoRand: adapters whose matrices are sums of small products."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("lorand", category="addition", family="adapter", paper="CVPR 2023", year=2023, venue="CVPR")
class LoRand(Method):
    """A residual adapter behind each branch, x + GELU(x W_1 + b_1) W_2 + b_2, its matrices synthesised from factors.

    W_1 (D, D / f) = sum over i of A_i G_i B_i, with A_i (D, k), G_i (k, k), B_i (k, D / f); W_2 alike. It stands behind
    the branch's drop path, before the residual add. A, G and B start Kaiming-uniform (a = sqrt(5)), the biases as
    nn.Linear's, so step 0 is not the frozen model.

    Two branches with k = 8 and f = 2 are the published 1.20 M on Swin-B; four are LoRand+, four with k = 16 LoRand++.
    The branches are summed, not averaged, as in the authors' released code (in the CoLin repository).
    """

    branches: int = Field(default=2, gt=0)
    """how many products are summed"""
    kernel: int = Field(default=8, gt=0)
    """k"""
    factor: int = Field(default=2, gt=0)
    """f: the inner width is D / f"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for name in ("attn_branch", "mlp_branch"):
                if block.has(name):
                    yield block.parts[name].after(LoRandAdapter(block.dim, self.branches, self.kernel, self.factor))


class Synthesised(nn.Module):
    """x -> x W + b with W (width_in, width) = sum_i A_i G_i B_i."""

    def __init__(self, width_in: int, width: int, branches: int, kernel: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(branches, width_in, kernel))
        self.G = nn.Parameter(torch.empty(branches, kernel, kernel))
        self.B = nn.Parameter(torch.empty(branches, kernel, width))
        self.bias = nn.Parameter(torch.empty(width))
        for stack in (self.A, self.G, self.B):  # each matrix as kaiming_uniform_ with a = sqrt(5) on its own shape
            nn.init.uniform_(stack, -(bound := 1 / math.sqrt(stack.shape[-1])), bound)
        nn.init.uniform_(self.bias, -(bound := 1 / math.sqrt(width_in)), bound)

    def weight(self) -> Tensor:
        """W (width_in, width)."""
        return (self.A @ self.G @ self.B).sum(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight().T, self.bias)


class LoRandAdapter(nn.Module):
    """x -> x + GELU(x W_1 + b_1) W_2 + b_2."""

    def __init__(self, width: int, branches: int, kernel: int, factor: int) -> None:
        super().__init__()
        inner = max(1, width // factor)
        self.down = Synthesised(width, inner, branches, kernel)
        self.up = Synthesised(inner, width, branches, kernel)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.up(F.gelu(self.down(x)))
        return out
