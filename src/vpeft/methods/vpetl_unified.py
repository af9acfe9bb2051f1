"""The V-PETL framework's combination: PATT and AdaptFormer attached together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register
from .adaptformer import AdaptFormer
from .patt import PATT


@register("vpetl_unified", category="unified", family="unified", paper="2210.00788", year=2022, venue="arXiv")
class VPETLUnified(Method):
    """`PATT` and `AdaptFormer` as one: attention and MLP each have a parallel bottleneck.

    k + s dk, v + s dv as in PATT; x + MLP(LN2(x)) + t (W_up drop(ReLU(W_down x + b_down)) + b_up) as in AdaptFormer.
    `parts` are the two methods; attaching them instead gives the same. `bapat` differs in what the adapter reads.
    """

    hidden: int = Field(default=128, gt=0)
    """m of PATT"""
    scale: float = 0.8
    """s of PATT"""
    mode: Literal["kv", "qv", "qk", "qkv"] = "kv"
    """which of q, k and v PATT changes"""
    bottleneck: int = Field(default=64, gt=0)
    """R of AdaptFormer"""
    adapter_scale: float = 0.1
    """t of AdaptFormer"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that this one is made of."""
        return (
            PATT(hidden=self.hidden, scale=self.scale, mode=self.mode),
            AdaptFormer(bottleneck=self.bottleneck, scale=self.adapter_scale),
        )

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for part in self.parts:
            yield from part.edits(backbone)
