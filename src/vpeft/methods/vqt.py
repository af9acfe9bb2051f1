"""VQT: learned queries summarise every frozen block for the head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.prompt import xavier_bound
from ..layers.query_side import frozen_path
from ..method import Method, register


@register("vqt", category="addition", family="prefix", paper="2212.03220", year=2023, venue="CVPR")
class VQT(Method):
    """T tokens of each block act as queries only; what they gather goes to the head beside the pooled feature.

    s_l = y + MLP(LN2(y)), y = P_l + W_o softmax(q K^T / sqrt(d)) V, q = W_q LN1(P_l), with K and V of the image tokens
    of block l and all weights frozen; P_l (T, D). The feature is [n(z); n(s_1); ...; n(s_L)], (D + L T D,), z the
    pooled feature, s_l flattened and n the division by the Euclidean norm. The image tokens never see the queries, so
    no gradient enters their stream. P starts in VPT's bounds.

    The linear head grows with the feature: (1 + L T) D C + C parameters for C classes. The authors' second step, which
    keeps the features with the largest head columns and trains again, is not part of this.
    """

    tokens: int = Field(default=1, gt=0)
    """T; 1, or 10 in ablations"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the queries"""
    normalise: bool = True
    """n; False leaves the parts as they are"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core", "attn.q", "attn.k", "attn.v", "attn.proj")
        for block in backbone.blocks:
            if block.attn.core.per_window or not block.attn_branch.steps or not block.mlp_branch.steps:
                raise MissingPlace(
                    f"VQT runs its queries through whole blocks, but {block.name} of {backbone.facts.architecture}"
                    " attends within windows or is no plain chain of norm, attention and MLP."
                )
        reads = tuple(place for block in backbone.blocks for place in (block.attn.k, block.attn.v))
        yield backbone.outlet.after(Summaries(self, backbone), reads=reads)


class Summaries(nn.Module):
    """(pooled feature (B, D), k_1, v_1, k_2, v_2, ...) -> (B, D + L T D); k and v (B, N, D)."""

    def __init__(self, method: VQT, backbone: Backbone) -> None:
        super().__init__()
        depth, width = len(backbone.blocks), backbone.blocks[0].dim
        bound = xavier_bound(backbone, width)
        self.P = nn.Parameter(torch.empty(depth, method.tokens, width).uniform_(-bound, bound))
        self.dropout, self.normalise = nn.Dropout(method.dropout), method.normalise
        self.feature_width = backbone.facts.width + depth * method.tokens * width
        self.paths = tuple(frozen_path(block) for block in backbone.blocks)

    def forward(self, feature: Tensor, *values: Tensor) -> Tensor:
        parts = [feature]
        for i, path in enumerate(self.paths):
            queries = self.dropout(self.P[i].expand(feature.shape[0], -1, -1))
            parts.append(path(queries, values[2 * i], values[2 * i + 1])[0].flatten(1).to(feature.dtype))
        return torch.cat([F.normalize(part, dim=1) for part in parts] if self.normalise else parts, dim=1)
