"""ARC: adapters that are re-composed from one projection which all blocks share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("arc", category="addition", family="adapter", paper="2310.06234", year=2023, venue="NeurIPS")
class ARC(Method):
    """Between each norm and the layer that reads it a linear bottleneck, whose matrix all blocks share.

    A_l(x) = x + P drop(c_l * (P^T x)) + b_l, x = LN(h) (B, N, D), P (D, R) shared by all blocks (one before attention,
    one before the MLP), c_l (R,) and b_l (D,) of each block and site. It folds into the next linear:
    W' = W (I + P diag(c) P^T), bias + W b_l.

    Before attention c starts at zero. Before the MLP it starts Xavier-uniform on (1, R), so step 0 is the frozen model
    only with sites=("attn",), the authors' ARC_att. On backbones of several widths each width has its own P (the
    authors' Swin: each stage). `stream` is how their Swin places the second adapter: on the residual stream before the
    norm, shortcut included, which does not fold.
    """

    sites: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """before attention, before the MLP"""
    bottleneck: int = Field(default=50, gt=0)
    """R"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the R numbers of each token"""
    stream: bool = False
    """whether the MLP's adapter changes the residual stream before the norm, as on the authors' Swin"""

    @property
    def starts_as_identity(self) -> bool:
        return self.sites == ("attn",)

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        shared: dict[tuple[str, int], SharedProjection] = {}
        for block in backbone.blocks:
            for site in self.sites:
                key = site, block.dim
                if key not in shared:
                    shared[key] = SharedProjection(block.dim, self.bottleneck)
                layer = Recomposed(shared[key], self.dropout, zero=site == "attn")
                if site == "mlp":
                    backbone.require("stream1" if self.stream else "norm2")
                    yield (block.stream1 if self.stream else block.norm2).after(layer)
                elif block.has("norm1"):
                    yield block.norm1.after(layer)
                else:
                    yield block.projection("conv").before(layer)


class SharedProjection(nn.Module):
    """P (D, R), Xavier-uniform."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.P = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, bottleneck)))


class Recomposed(nn.Module):
    """x (..., D) -> x + P drop(c * (P^T x)) + b; `zero` starts c at zero instead of Xavier-uniform."""

    def __init__(self, shared: SharedProjection, dropout: float, zero: bool) -> None:
        super().__init__()
        self.shared = shared
        width, bottleneck = shared.P.shape
        self.scale = nn.Parameter(torch.zeros(1, bottleneck))
        self.bias = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(dropout)
        if not zero:
            nn.init.xavier_uniform_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        P = self.shared.P
        out: Tensor = x + self.dropout(x @ (P * self.scale)) @ P.T + self.bias
        return out

    def linear_map(self) -> tuple[Tensor, Tensor]:
        """M = I + P diag(c) P^T and b of x -> M x + b."""
        P = self.shared.P
        return torch.eye(len(P), dtype=P.dtype, device=P.device) + (P * self.scale) @ P.T, self.bias
