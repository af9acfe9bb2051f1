"""Gated prompt tuning: each block mixes the prompts that it gives with those that it was given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import Layout, MissingPlace
from ..layers.prompt import PromptTokens, xavier_bound
from ..method import Method, register


@register("gate_prompt", category="addition", family="prompt", paper="2306.05067", year=2023, venue="ICML")
class GatePrompt(Method):
    """VPT-Shallow; behind every block but the last, P <- g_i Block_i(P) + (1 - g_i) P with g_i = sigmoid(a_i).

    The attention of each block divides its scores by a trained temperature: softmax(q k^T / (sqrt(d) t_i)), t_i from
    one, taken within [0.01, 10]. a_i starts at -`gate`, so each block sees almost the same prompts at first. P (p, D)
    starts in VPT's bounds. Needs a sequence of tokens through all blocks, so no windows.
    """

    tokens: int = Field(default=100, gt=0)
    """p"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the prompts"""
    gate: float = 5.0
    """-a_i at the start; the code's default is 10, its example has 5"""
    pooled: bool = True
    """whether a mean over the tokens, where the backbone pools by one, includes the prompts"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        trunk = backbone.trunk
        bound = xavier_bound(backbone, trunk.width_in)
        layer = PromptTokens(self.tokens, trunk.width_in, bound, self.dropout)
        yield trunk.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")
        for block in backbone.blocks:
            if block.layout is not Layout.TOKENS or block.attn.core.per_window:
                raise MissingPlace(
                    f"{block.name} of {backbone.facts.architecture} attends within windows. Gated prompts need one"
                    " sequence through all blocks; prompts that stay within a block are vpt_deep."
                )
            yield block.attn.core.extend(Temperature())
            if block is not backbone.blocks[-1]:
                yield block.after(PromptGate(block.prefix, self.tokens, -self.gate), reads=(block.input,))


class PromptGate(nn.Module):
    """(h, x) -> h whose p tokens behind the prefix are g h + (1 - g) x there; (B, N, D) each."""

    def __init__(self, prefix: int, tokens: int, start: float) -> None:
        super().__init__()
        self.prefix, self.tokens = prefix, tokens
        self.a = nn.Parameter(torch.full((1,), start))

    def forward(self, hidden: Tensor, came: Tensor) -> Tensor:
        gate, end = self.a.sigmoid(), self.prefix + self.tokens
        mixed = gate * hidden[:, self.prefix : end] + (1 - gate) * came[:, self.prefix : end]
        return torch.cat([hidden[:, : self.prefix], mixed.to(hidden.dtype), hidden[:, end:]], dim=1)


class Temperature(nn.Module):
    """q -> q / t, t within [0.01, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.ones(1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q / self.t.clamp(0.01, 10.0).to(q.dtype), k, v
