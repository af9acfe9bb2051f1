"""VPT-Shallow: learnable tokens in front of the patches, once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.prompt import PromptTokens, projection, xavier_bound
from ..method import Method, register


@register("vpt_shallow", category="addition", family="prompt", paper="2203.12119", year=2022, venue="ECCV")
class VPTShallow(Method):
    """n tokens join the sequence before the first block and travel through all of them.

    x_0 = [cls; drop(Proj(P)); patches], x_{i+1} = Block_i(x_i), P (n, D) without position embedding; Proj is the
    identity, or a linear map from `project` channels. On Swin the tokens are copied into every window, their outputs
    averaged over the windows, and patch merging widens them by four copies; a final mean includes them.

    Departures from the authors' code on Swin: windows and images never mix (theirs orders them differently on the way
    in and out, so that the prompts of a batch mix), and `project` acts (theirs makes the layer and ignores it).
    """

    tokens: int = Field(default=100, gt=0)
    """n; the paper searches 1, 5, 10, 50, 100, 200"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """on the tokens, for each sample; the authors' runs use 0.1"""
    project: int | None = Field(default=None, gt=0)
    """channels of P before Proj; None for no projection"""
    pooled: bool = True
    """whether a mean over the tokens, where the backbone pools by one, includes the prompts"""
    init: Literal["vpt", "bench"] = "vpt"
    """bound of the uniform start: sqrt(6 / (patch values + width)), or sqrt(6 / width) as V-PETL Bench has it"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        trunk = backbone.trunk
        width = self.project or trunk.width_in
        bound = xavier_bound(backbone, width) if self.init == "vpt" else math.sqrt(6.0 / width)
        project = None if self.project is None else projection(width, trunk.width_in)
        layer = PromptTokens(self.tokens, width, bound, self.dropout, project)
        yield trunk.insert_tokens(layer, lifetime="pooled" if self.pooled else "span")
