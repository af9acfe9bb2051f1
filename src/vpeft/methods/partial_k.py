"""Partial-k: only the last blocks train."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register


@register("partial_k", category="partial", family="specification", paper="2203.12119", year=2022, venue="ECCV")
class PartialK(Method):
    """The last k blocks and the norm after them train, with every weight, bias, norm and scale in them.

    Where the k blocks cross from one stage into the next, the downsampling between them trains too; so partial-4 on a
    Swin is its last stage, the merging of patches before it, and the last two blocks of the stage before (VPT).
    """

    k: int = Field(default=1, gt=0)
    """number of blocks; VPT tries 1, 2 and 4"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        depth = len(backbone.blocks)
        if self.k > depth:
            raise MissingPlace(f"partial_k was asked for {self.k} blocks; {backbone.facts.architecture} has {depth}.")
        first = depth - self.k
        for stage in backbone.stages:
            if first < stage.blocks[0].index:
                for part in stage.parts.values():
                    if not isinstance(part, Block):
                        yield part.unfreeze()
            for block in stage.blocks:
                if block.index >= first:
                    yield block.unfreeze()
        if backbone.has_norm:
            yield backbone.norm.unfreeze()
