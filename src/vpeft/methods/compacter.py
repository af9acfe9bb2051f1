"""Compacter: adapters whose matrices are sums of Kronecker products with shared small factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import BadField, Method, register


@register("compacter", category="addition", family="adapter", paper="2106.04647", year=2021, venue="NeurIPS")
class Compacter(Method):
    """An adapter in series on attention and MLP, both of whose matrices are H = sum_j A_j (x) (s_j t_j), j = 1..n.

    A(x) = x + up(g(down(x))), each map x H + b; x (B, N, D), g the tanh GELU, H (in, out), A_j (n, n) shared by every
    map of every block, s_j (in / n, r), t_j (r, out / n). All norms train too, as in the authors' code. It acts before
    LayerScale and drop path.

    A starts at N(0, 1e-4), s and t Glorot-uniform with gain sqrt(2), b at zero: step 0 is the frozen model up to
    about 1e-4. No code for vision was published: the places are those of the T5 code on a block with norms in front.
    """

    variants = ({"sites": ("mlp",)},)

    sites: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """both is Compacter, ("mlp",) is Compacter++"""
    bottleneck: int = Field(default=24, gt=0)
    """R, inner channels; the paper has D / 32 of the width D (8 and 16 are also tried)"""
    n: int = Field(default=4, gt=0)
    """number and size of the A_j; 4, 8 or 12 in the paper. It must divide D and R"""
    rank: int = Field(default=1, gt=0)
    """r of each s_j t_j"""
    norms: bool = True
    """whether the norms of the backbone train"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require(*self.sites)
        if self.bottleneck % self.n:
            raise BadField(f"Compacter.n = {self.n} must divide its bottleneck, {self.bottleneck}.")
        rule = Rule(self.n)
        for block in backbone.blocks:
            if block.dim % self.n:
                raise MissingPlace(f"{block.name} has {block.dim} channels, which n = {self.n} does not divide.")
            for site in self.sites:
                layer = HypercomplexAdapter(rule, block.dim, self.bottleneck, self.rank)
                yield block.parts[site].after(layer)
        if self.norms:
            for norm in backbone.norms:
                if norm.own:
                    yield norm.unfreeze()


class Rule(nn.Module):
    """A (n, n, n), the slow factors; one object serves every map."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(n, n, n) * 1e-4)


class HypercomplexLinear(nn.Module):
    """x (..., in) -> x H + b, H = sum_j A_j (x) (s_j t_j), without forming H."""

    def __init__(self, rule: Rule, width_in: int, width: int, rank: int) -> None:
        super().__init__()
        self.rule, n = rule, len(rule.A)
        self.s = nn.Parameter(torch.empty(n, width_in // n, rank))
        self.t = nn.Parameter(torch.empty(n, rank, width // n))
        self.b = nn.Parameter(torch.zeros(width))
        for factors in (self.s, self.t):
            for each in factors.detach():
                nn.init.xavier_uniform_(each, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.reshape(*x.shape[:-1], len(self.rule.A), -1)
        inner = torch.einsum("...ak,jkr->...jra", pieces, self.s)
        inner = torch.einsum("...jra,jac->...jrc", inner, self.rule.A)
        return torch.einsum("...jrc,jrp->...cp", inner, self.t).flatten(-2) + self.b


class HypercomplexAdapter(nn.Module):
    """x (..., D) -> x + up(GELU(down(x)))."""

    def __init__(self, rule: Rule, width: int, bottleneck: int, rank: int) -> None:
        super().__init__()
        self.down = HypercomplexLinear(rule, width, bottleneck, rank)
        self.up = HypercomplexLinear(rule, bottleneck, width, rank)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.up(F.gelu(self.down(x), approximate="tanh"))
        return out
