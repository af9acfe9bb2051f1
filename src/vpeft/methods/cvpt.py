"""CVPT: image tokens attend to prompts through a copy of the block's own attention."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.frozen_block import FrozenAttention
from ..method import Method, register


@register("cvpt", category="addition", family="prompt", paper="2408.14961", year=2025, venue="ICCV")
class CVPT(Method):
    """Between attention and MLP every token attends to the block's prompts; the prompts never join the sequence.

    x + W_o softmax(q(x) k(P)^T / sqrt(d)) v(P), x (N, D) the residual stream behind the attention, without a norm,
    P (n, D) with dropout; q, k, v and W_o are those of the block's own attention, frozen (weight sharing). Only P
    trains. All P together start Xavier-uniform on (L, n, D): the bound is sqrt(6 / (n D + L D)).

    This is the released code's default place (its `insert` 3); there the copied weights do not train either. Step 0 is
    not the frozen model. Beyond ViT, as an extension of ours, tokens in windows attend to all prompts, and no
    position bias, rotation or cosine similarity is applied to the scores.
    """

    tokens: int = Field(default=20, gt=0)
    """n; the released settings have one for each task, such as 20 for Clevr-Count"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on P, for each sample"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core", "attn.q", "attn.k", "attn.v", "attn.proj", "stream1")
        for block in backbone.blocks:
            width = block.stream1.width
            if {block.attn.q.width_in, block.attn.k.width_in, block.attn.proj.width} != {width}:
                raise MissingPlace(f"The attention of {block.name} changes the width, so its output cannot be reused.")
            bound = math.sqrt(6.0 / (width * (self.tokens + len(backbone.blocks))))
            yield block.stream1.after(
                AttendedPrompts(self.tokens, width, bound, self.dropout, FrozenAttention(block.attn))
            )


class AttendedPrompts(nn.Module):
    """x (B, ..., D) -> x + attention from x to n prompts."""

    def __init__(self, count: int, width: int, bound: float, dropout: float, attention: FrozenAttention) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))
        self.dropout, self.attention = nn.Dropout(dropout), attention

    def forward(self, x: Tensor) -> Tensor:
        prompts = self.dropout(self.tokens.expand(x.shape[0], -1, -1))
        change = self.attention(x.reshape(x.shape[0], -1, x.shape[-1]), prompts)
        return x + change.reshape(x.shape).to(x.dtype)
