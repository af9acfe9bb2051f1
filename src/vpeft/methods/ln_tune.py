"""LN-Tune: only the scales and shifts of the norms train."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from .method import Method
from .registry import register


@register("ln_tune", category="partial", family="specification", paper="2304.01917", year=2024, venue="AAAI")
class LNTune(Method):
    """The affine parameters of every norm train: y = gamma (x - mean) / std + beta, gamma and beta (D,).

    That is both norms of each block, the final norm, and those of patches, queries, keys or downsampling where the
    backbone has them. Weight decay would pull gamma to 0: leave it off (one-dimensional tensors are not decayed here).
    """

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for norm in backbone.norms:
            if norm.own:
                yield norm.unfreeze()
