"""BitFit: only biases train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..layers.scale_shift import Shift
from ..method import Method, register

TABLE = "relative_position_bias_table"


@register("bitfit", category="partial", family="specification", paper="2106.10199", year=2022, venue="ACL")
class BitFit(Method):
    """Every bias of the backbone trains: y = W x + (b + db) in projections, beta + dbeta in norms.

    Trained are the parameters whose own name is `bias`: of the patch projection, of every projection and norm of the
    blocks, of the downsampling and of the final norm. Nothing else is chosen by a part of its name.

    In the vision tables ("Bias", TinyTL-bias) names that contain `bias` were trained, which on Swin includes the tables
    of relative positions: `relative_position`. Weight decay would pull biases to 0, not to their pre-trained value.
    """

    only: Literal["all", "query_fc1"] = "all"
    """query_fc1: the biases of the queries and of the MLP's first layer alone, half of them, nearly as good (paper)"""
    relative_position: bool = False
    """also the tables of relative-position biases; the published count of Swin-B, 0.20 M, includes them"""
    add_missing: bool = False
    """give projections of the blocks that have no bias one that starts at zero"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.only == "query_fc1":
            backbone.require("attn.q", "mlp.fc1")
            for block in backbone.blocks:
                yield block.attn.q.after(Shift(block.attn.q.width))
                yield block.mlp.fc1.after(Shift(block.mlp.fc1.width))
            return
        chosen = {"bias", TABLE} if self.relative_position else {"bias"}
        for place in backbone.places():
            names = [name for name in place.own if name.rpartition(".")[2] in chosen]
            if names:
                yield place.unfreeze(*names)
        if self.add_missing:
            for block in backbone.blocks:
                for place in block.walk():
                    # a fused projection whose bias lives in pieces lacks only some of them
                    whole = isinstance(place, Projection) and (place.rows is None) is (not place.biases)
                    if whole and "bias" not in place.own:
                        yield place.after(Shift(place.width))
