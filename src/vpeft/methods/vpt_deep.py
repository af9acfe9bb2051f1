"""VPT-Deep: fresh learnable tokens in front of the patches of every block."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.prompt import PromptTokens, per_width, xavier_bound
from ..method import Method, register


@register("vpt_deep", category="addition", family="prompt", paper="2203.12119", year=2022, venue="ECCV")
class VPTDeep(Method):
    """n tokens of their own join the sequence before each block and leave it after the block.

    x_{i+1} = Block_i([cls; drop(Proj(P_i)); patches]) without the tokens' outputs, P_i (n, D). What leaves the last
    block takes part in a final mean, where the backbone pools by one. On Swin as in VPT-Shallow.

    Every P_i starts with the same bound, from the width of the first block (also on Swin). One Proj serves all blocks
    of one width. Departure on Swin: dropout is drawn for each sample; the authors' code draws one mask for the batch.
    """

    tokens: int = Field(default=10, gt=0)
    """n; the paper searches 1, 5, 10, 50, 100, 200"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """on the tokens, for each sample and block; the authors' runs use 0.1"""
    project: int | None = Field(default=None, gt=0)
    """channels of each P_i before Proj; None for no projection"""
    pooled: bool = True
    """whether a mean over the tokens, where the backbone pools by one, includes the last block's prompts"""
    blocks: tuple[int, ...] | None = None
    """which blocks have prompts; None means all. Gradients stop below the first of them"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        bound = xavier_bound(backbone, self.project or backbone.blocks[0].dim)
        shared: dict[int, nn.Linear] = {}
        for block in backbone.blocks:
            if self.blocks is not None and block.index not in self.blocks:
                continue
            project = None if self.project is None else per_width(shared, self.project, block.dim)
            layer = PromptTokens(self.tokens, self.project or block.dim, bound, self.dropout, project)
            yield block.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")
