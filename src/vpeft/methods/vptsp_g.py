"""VPTSP-G, the encoder's side: shared prompts whose number may shrink with depth, and trained biases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.prompt import PromptTokens
from ..method import Method, register
from .bitfit import BitFit


@register("vptsp_g", category="addition", family="prompt", paper="2402.02340", year=2024, venue="ICLR")
class VPTSPG(Method):
    """What is left of VPTSP-G at inference: prompts in the first blocks, removed behind each, and every bias trained.

    x_{i+1} = Block_i([Q_i; x_i]) without the prompts' outputs, Q_i (n_i, D), n_i = max(n - i step, 0), for i < depth.
    The authors put them before the class token; here they stand behind it, which changes nothing, as a frozen block
    has no order of tokens but the positions that are in x_0. All released settings also train the biases (BitFit).

    The proxy branch (class prompts, GRU, proxies) and the loss belong to training for retrieval and are no part of the
    encoder; their place is a task. Q_i starts Xavier-normal on (1, n, D), so step 0 is not the frozen model.
    """

    tokens: int = Field(default=20, gt=0)
    """n; 10 to 90 in the released settings"""
    depth: int | None = Field(default=None, gt=0)
    """how many blocks have prompts, from the first; None means all"""
    step: int = Field(default=0, ge=0)
    """how many prompts fewer each next block has"""
    biases: bool = True
    """also train every bias of the backbone"""
    pooled: bool = False
    """whether a mean over the tokens, where the backbone pools by one, includes the last block's prompts"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks[: self.depth]:
            count = max(self.tokens - block.index * self.step, 0)
            if count == 0:
                break
            layer = PromptTokens(count, block.dim, 0.0)
            # the code makes all n in each block and uses the first: the range is that of n
            layer.tokens.data.copy_(nn.init.xavier_normal_(torch.empty(1, self.tokens, block.dim))[0, :count])
            yield block.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")
        if self.biases:
            yield from BitFit().edits(backbone)
