"""DRA: one learned vector for each residual branch."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.scale_shift import Shift
from ..method import Method, register


@register("dra", category="addition", family="adapter", paper="2301.02419", year=2023, venue="TMLR")
class DRA(Method):
    """Domain residual adapter: x + [MSA(LN(x)) + d_a], then x + [MLP(LN(x)) + d_m], with d_a and d_m (D,) from zero.

    The vectors are added to every token, behind LayerScale and drop path (so that drop path never drops them). They
    fold into the biases of the branches' last projections, divided by the LayerScale where there is one.
    """

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for name in ("attn_branch", "mlp_branch"):
                if block.has(name):
                    yield block.parts[name].after(Shift(block.dim))
