"""Res-Tuning: tuners unbound from the backbone, beside attention, MLP and block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..layers.bottleneck import Bottleneck
from ..method import BadField, Method, register
from .u_tuner import Beside

Form = Literal["adapter", "prefix", "prompt", "none"]


@register("res_tuning", category="unified", family="unified", paper="2310.19859", year=2023, venue="NeurIPS")
class ResTuning(Method):
    """x' = OP(x) + R(x) for OP the attention, the MLP or the whole block; R reads what OP reads.

    adapter: W_up GELU(W_down x + b_down) + b_up.
    prefix: heads of softmax(q(x) K^T / sqrt(d)) V, q the block's frozen query projection, K and V (n, D) trained.
    prompt: the same with K = k(P), V = v(P) through the block's frozen projections, P (n, D) trained.
    prefix and prompt stand beside the attention alone here; their result is added behind the output projection.

    The official code was not read; the equations are the paper's as its authors' later libraries have them. Not
    verified: which tuner stands where in the published figures, that nothing projects the result of prefix and prompt,
    and the sizes. Adapters start Xavier-uniform with biases N(0, 1e-6), as in those libraries, K, V and P likewise, so
    step 0 is not the frozen model; start="identity" begins adapters with W_up = 0.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"attention": "none"},)

    attention: Form = "adapter"
    """the tuner beside attention"""
    mlp: Literal["adapter", "none"] = "adapter"
    """the tuner beside the MLP"""
    block: Literal["adapter", "none"] = "none"
    """the tuner beside the whole block"""
    bottleneck: int = Field(default=8, gt=0)
    """rows of W_down"""
    length: int = Field(default=10, gt=0)
    """n"""
    start: Literal["published", "identity"] = "published"
    """first values of adapters"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity" and self.attention in ("adapter", "none")

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if {self.attention, self.mlp, self.block} == {"none"}:
            raise BadField("Res-Tuning has no tuner left: attention, mlp and block are all 'none'.")
        backbone.require(*(name for name, form in (("attn", self.attention), ("mlp", self.mlp)) if form != "none"))
        for block in backbone.blocks:
            if self.attention == "adapter":
                yield block.attn.parallel(self._adapter(block.dim))
            elif self.attention != "none":
                yield block.attn.parallel(self._lookup(block), reads=(block.attn.q,))
            if self.mlp == "adapter":
                yield block.mlp.parallel(self._adapter(block.dim))
            if self.block == "adapter":
                yield block.after(Beside(self._adapter(block.dim)), reads=(block.input,))

    def _adapter(self, width: int) -> Bottleneck:
        layer = Bottleneck(width, self.bottleneck, activation="gelu")
        if self.start == "published":
            for linear in (layer.down, layer.up):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)
        return layer

    def _lookup(self, block: Block) -> FrozenQueryLookup:
        core, attn = block.attn.core, block.attn
        if core.width != block.dim:
            raise MissingPlace(f"The heads of {core.name} have {core.width} channels in all, the block {block.dim}.")
        through = (attn.k, attn.v) if self.attention == "prompt" else None
        return FrozenQueryLookup(core.heads, attn.k.width_in if through else core.width, self.length, through)


class FrozenQueryLookup(nn.Module):
    """q (B, N, D) -> heads of softmax(q K^T / sqrt(d)) V.

    Args:
        heads: number of heads.
        width: of the trained rows.
        length: n, how many there are.
        through: the frozen projections of keys and values that the rows pass; None for rows that are keys and values.
    """

    def __init__(self, heads: int, width: int, length: int, through: tuple[Projection, Projection] | None) -> None:
        super().__init__()
        self.heads, self.through = heads, through
        names = ("keys", "values") if through is None else ("rows",)
        for name in names:
            self.register_parameter(name, nn.Parameter(nn.init.xavier_uniform_(torch.empty(length, width))))

    def forward(self, q: Tensor) -> Tensor:
        if self.through is None:
            pair: list[Tensor] = [self.get_parameter("keys"), self.get_parameter("values")]
        else:
            pair = [F.linear(self.get_parameter("rows"), place.weight, place.bias) for place in self.through]
        q, k, v = (x.reshape(*x.shape[:-1], self.heads, -1).transpose(-3, -2).to(q.dtype) for x in (q, *pair))
        k, v = (rows.expand(*q.shape[:-2], *rows.shape[-2:]) for rows in (k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
