"""HST: a pyramid side network that cross-attends to meta tokens and means of a ViT's blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.prompt import PromptTokens
from ..layers.pyramid_side import ContextBlock, Pyramid, PyramidStage
from ..method import BadField, Method, register


@register("hst", category="addition", family="side", paper="2310.05393", year=2023, venue="arXiv")
class HST(Method):
    """A four-level side network with its own image stem reads, block by block, a meta token and the patch tokens.

    Before block i a learnt token e_i (D) joins the sequence, behind it it leaves as m_i; V_i are the block's patch
    tokens. Level s with width C reads a share of the blocks: M_i = LN_i(T_s m_i), W_i = T_s resize(V_i), T_s (C, D);
    y <- y + CrossAttn(LN y, [M_i; mean W_i]); y <- y + W_i; y <- y + MLP(LN y). The first level starts from
    conv-BN-ReLU-conv of the image at stride 4, each later one halves the map before it. The feature is the mean over
    the last level's tokens, passed through a BatchNorm without scale; it has the last width's channels, and the head is
    made for it. All norms inside the frozen blocks train too.

    The first levels take the blocks in equal shares; on stages of several widths each stage has its level (the paper
    treats ViT only). e_i stands behind the class token instead of before it, which changes nothing.
    """

    widths: tuple[int, ...] = Field(default=(32, 48, 64, 72), min_length=1)
    """C of each level"""
    heads: tuple[int, ...] = Field(default=(2, 4, 8, 12), min_length=1)
    """of the cross-attention, for each level"""
    mlp_ratio: int = Field(default=4, gt=0)
    """hidden width of the side's MLPs over C"""
    tokens: int = Field(default=1, gt=0)
    """meta tokens for each block"""
    tune_norms: bool = True
    """train the norms inside the frozen blocks"""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """of the side's branches at the last block; it grows linearly from zero"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require_images("HST")
        metas = []
        for block in backbone.blocks:
            bound = math.sqrt(6.0 / (2 * block.dim))  # Xavier for a tensor of 1 x 1 x D
            metas.append(block.insert_tokens(PromptTokens(self.tokens, block.dim, bound)))
            yield metas[-1]
            if self.tune_norms:
                for norm in block.norms:
                    yield norm.unfreeze()
        levels, before = [], 0
        depth = len(backbone.blocks)
        for width, heads, blocks in zip(self.widths, self.heads, self._shares(backbone), strict=False):
            rates = [self.drop_path * block.index / max(1, depth - 1) for block in blocks]
            made = [ContextBlock(width, heads, self.mlp_ratio * width, rate) for rate in rates]
            levels.append(PyramidStage(before, width, blocks[0].dim, made))
            before = width
        pyramid = Pyramid(levels, backbone.pixels.width)
        yield backbone.outlet.after(pyramid, reads=(backbone.pixels, *backbone.blocks, *metas))

    def _shares(self, backbone: Backbone) -> list[list[Block]]:
        """The blocks that each level reads."""
        if len(self.heads) != len(self.widths):
            raise BadField(f"HST has {len(self.widths)} widths, but heads for {len(self.heads)} levels.")
        if len(backbone.stages) > 1:
            if len(backbone.stages) > len(self.widths):
                raise MissingPlace(
                    f"HST has {len(self.widths)} levels, but {backbone.facts.architecture} has {len(backbone.stages)}"
                    " stages. Give a width and a number of heads for each stage."
                )
            return [stage.blocks for stage in backbone.stages]
        depth = len(backbone.blocks)
        levels = min(len(self.widths), depth)
        return [[b for b in backbone.blocks if b.index * levels // depth == level] for level in range(levels)]
