"""Convpass: convolutional bypasses beside attention and MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.convolution import ConvolutionalBypass
from ..method import Method, register


@register("convpass", category="addition", family="adapter", paper="2207.07039", year=2022, venue="arXiv")
class Convpass(Method):
    """A 1x1, 3x3, 1x1 convolutional bottleneck beside attention and MLP gives the tokens their grid back.

    x + DP(f(LN(x))) + s DP'(W_u drop(q(C q(W_d LN(x) + b_d))) + b_u) for f = attention and for f = MLP, each with its
    own bypass; q = QuickGELU, W_d (h, D), W_u (D, h), C a dense 3x3 convolution of h channels on the H x W grid. The
    bypass reads what the sub-layer reads, is added outside LayerScale, and has a drop path DP' of its own.

    The class token passes C as an image of one pixel (the authors' code); so do registers and inserted prompts, which
    the code does not know. On backbones without attention only `mlp` can be asked for; the paper has ViT and Swin.
    """

    variants = ({"sites": ("mlp",)},)

    sites: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """both is Convpass, ("attn",) is Convpass-attn"""
    hidden: int = Field(default=8, gt=0)
    """h"""
    scale: float = 1.0
    """s; the authors choose it for each task from 0.01, 0.1, 1, 10, 100"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """before W_u"""
    time: Literal[1, 3, 5] = 1
    """steps of time that C spans on clips; 1, the paper's, convolves each frame by itself"""
    xavier: bool = False
    """start C Xavier-uniform (the authors: for 8 of 19 tasks) instead of as the identity"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require(*self.sites)
        if self.time > 1:
            backbone.require_time("Convpass over time")
        for block in backbone.blocks:
            for site in self.sites:
                norm, branch = (block.norm1, block.attn_branch) if site == "attn" else (block.norm2, block.mlp_branch)
                if norm.grid is None:
                    raise MissingPlace(f"{norm.name} has no grid, and Convpass convolves over one.")
                bypass = ConvolutionalBypass(
                    block.dim,
                    self.hidden,
                    scale=self.scale,
                    dropout=self.dropout,
                    drop_path=block.drop_path,
                    xavier=self.xavier,
                    time=self.time,
                )
                yield branch.parallel(bypass, reads=(norm,))
