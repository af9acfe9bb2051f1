"""Hydra: a low-rank branch beside a linear layer and another behind it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.linear_bottleneck import LinearBottleneck, Start
from ..method import Method, register


@register("hydra", category="addition", family="adapter", paper="2309.06922", year=2024, venue="Neural Networks")
class Hydra(Method):
    """On the output projection of the attention and on fc2: one branch reads the layer's input, one its output.

    y0 = W x + c, y = y0 + s (U_p drop(D_p x + d_p) + u_p) + s (U_s drop(D_s y0 + d_s) + u_s), x (B, N, D_in),
    D_p (R, D_in), D_s (R, D_out), both U (D_out, R). The second branch sees the frozen output without the first.
    It folds: W' = W + s U_p D_p + s U_s D_s W, c' = c + s (U_p d_p + u_p) + s (U_s D_s c + U_s d_s + u_s).

    Departure: the released merge folds the attention's branch with fc2's weight and fails; this is the right one.
    """

    variants = ({"sites": ("fc2",)},)

    sites: tuple[Literal["proj", "fc2"], ...] = ("proj", "fc2")
    """both is the authors' hydra_both (VTAB-1k), ("fc2",) what they use with CLIP"""
    rank: int = Field(default=2, gt=0)
    """R of each branch"""
    scale: float = 1.0
    """s of both branches; the authors choose it for each task, 0.1 to 4.5"""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """between the maps of both branches; the authors choose it for each task, 0 to 0.2"""
    start: Start = "xavier"
    """of D_p and D_s; with CLIP the authors use normal or kaiming. U and biases start at zero"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for site in self.sites:
                place = block.projection(site)
                yield place.after(self._branch(place.width, place.width, residual=True))
                yield place.parallel(self._branch(place.width_in, place.width, residual=False))

    def _branch(self, width_in: int, width: int, residual: bool) -> LinearBottleneck:
        return LinearBottleneck(
            width_in,
            width,
            self.rank,
            scale=self.scale,
            dropout=self.dropout,
            residual=residual,
            start=self.start,
        )
