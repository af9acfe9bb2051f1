"""SynQT: queries made on the side use the frozen blocks to extract features, and their outputs are fused."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.query_side import QueryFusion, QueryMixer, ResidualAdapter, frozen_path
from ..method import Method, register


@register("synqt", category="addition", family="side", paper="2407.06964", year=2024, venue="ECCV")
class SynQT(Method):
    """In each block a few synthesised queries attend, through the block's own frozen weights, to the image tokens.

    p = A_i(Q_i + s qbar_{i-1}), then a small query mixer (see `layers.query_side`); Q_i (t, D), s one learnt number.
    Block i as extractor: h = Attn_i(p; K, V of the image tokens), hh = MLP_i(p + h), each with the block's norms, and
    q_i = p + h + hh; bars are means over the t queries. F = [qbar_L; qbar_1..L; h_1..L; hh_1..L] (B, 3 L + 1, D) is
    refined by one adapter, weighted by its first entry, averaged, and normed by LN_head, which starts as the backbone's
    final norm (with eps 1e-5) and trains. The image tokens never see the queries, so no gradient enters their stream;
    it passes the frozen weights for t tokens only.

    As the code: every norm of the side has eps 1e-5, drop path of the blocks hits the queries too, Q starts uniform in
    (-1, 1), adapters as PyTorch's linear maps do, so step 0 is not the frozen model. Left out, as its forward never
    uses them: 18 469 parameters on ViT-B/16 (`pre_norm` and a fixed weight vector).
    """

    tokens: int = Field(default=4, gt=0)
    """t; 1, 4 or 16 by data set"""
    bottleneck: int = Field(default=48, gt=0)
    """of the adapters A_i, of the mixer and of the fusion"""
    inner: int = Field(default=8, gt=0)
    """bottleneck of the adapters that stand for the mixer's attention projections"""
    attn_scale: float = 0.1
    """start of the mixer's learnt factor of its attention; 0.1 or 1"""
    ffn_scale: float = 0.1
    """start of its learnt factor of the adapter; 0.1 or 1"""
    feat_scale: float = 0.1
    """start of s; 0.1 or 1"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """everywhere on the side"""
    drop_path: float = Field(default=0.3, ge=0.0, lt=1.0)
    """rate at which a fused feature is dropped for a sample"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core", "attn.q", "attn.k", "attn.v", "attn.proj")
        for block in backbone.blocks:
            if block.attn.core.per_window or not block.attn_branch.steps or not block.mlp_branch.steps:
                raise MissingPlace(
                    f"SynQT runs its queries through whole blocks, but {block.name} of {backbone.facts.architecture}"
                    " attends within windows or is no plain chain of norm, attention and MLP."
                )
        reads = tuple(place for block in backbone.blocks for place in (block.attn.k, block.attn.v))
        yield backbone.outlet.after(Queries(self, backbone), reads=reads)


class Queries(nn.Module):
    """(pooled feature, k_1, v_1, k_2, v_2, ...) -> (B, D); k and v (B, N, D). The pooled feature is not used."""

    def __init__(self, method: SynQT, backbone: Backbone) -> None:
        super().__init__()
        depth, width, drop = len(backbone.blocks), backbone.blocks[0].dim, method.dropout
        self.q = nn.Parameter(torch.empty(depth, method.tokens, width).uniform_(-1, 1))
        self.feat_scale = nn.Parameter(torch.tensor([method.feat_scale]))
        self.prompts = nn.ModuleList(ResidualAdapter(width, method.bottleneck, drop) for _ in range(depth))
        scales = (method.attn_scale, method.ffn_scale)
        self.mixers = nn.ModuleList(
            QueryMixer(width, method.bottleneck, method.inner, *scales, drop) for _ in range(depth)
        )
        self.feature_width = width  # not the backbone's, where that projects its pooled feature
        self.fusion = QueryFusion(width, 3 * depth, method.bottleneck, drop, method.drop_path)
        self.paths = tuple(frozen_path(block) for block in backbone.blocks)
        own = {name: getattr(*at) for name, at in backbone.norm.own.items()} if backbone.has_norm else {}
        with torch.no_grad():
            for name, start in own.items():
                if name in ("weight", "bias") and not start.is_meta and len(start) == width:
                    getattr(self.fusion.out, name).copy_(start)

    def forward(self, feature: Tensor, *values: Tensor) -> Tensor:
        queries: list[Tensor] = []
        attended: list[Tensor] = []
        changed: list[Tensor] = []
        for i, (prompt, mixer, path) in enumerate(zip(self.prompts, self.mixers, self.paths, strict=True)):
            p = self.q[i].expand(feature.shape[0], -1, -1)
            if queries:
                p = p + queries[-1] * self.feat_scale
            q, h, hh = path(mixer(prompt(p)), values[2 * i], values[2 * i + 1])
            for store, value in ((queries, q), (attended, h), (changed, hh)):
                store.append(value.mean(dim=1, keepdim=True))
        out: Tensor = self.fusion(torch.cat([queries[-1], *queries, *attended, *changed], dim=1))
        return out
