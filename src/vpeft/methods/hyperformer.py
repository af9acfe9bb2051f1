"""Hyperformer: adapters whose whole weight matrices networks make from a vector of the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..layers.hyper_adapter import AdapterGenerator, GeneratedAdapter, PlaceEmbedding, Projector, TaskEmbeddings
from ..method import register
from .polyhistor import FromTaskVectors

Site = Literal["attn", "mlp"]


@register("hyperformer", category="multi-task", family="adapter", paper="2106.04489", year=2021, venue="ACL")
class Hyperformer(FromTaskVectors):
    """x' = x + MLP(LN x) + A_t(x): an adapter in every block, made from a learned vector z_t of the task.

    A(x) = LN(U GELU(D LN(x) + b_d) + b_u), x (B, ..., D); v = LN(W_2 ReLU(W_1 z_t + b_1) + b_2), and D, U, the biases
    and the norms' gains and shifts are linear maps of v. z ~ N(0, 1), all maps N(0, 1e-4): near the frozen model at
    step 0, and not equal to it. The trunk runs once for each task of a batch.

    The defaults are the vision port that Polyhistor compares with: networks of each block's own, 72.77 M for Swin-T and
    four tasks (its count fits them; its configuration is not published). `share` = "width" is the paper's
    Hyperformer++: one network for all blocks of a width, z_t joined with a vector of the block, and with one of the
    position where there are adapters at attention too. The backbone's norms train in the paper: `train_norms`.
    """

    projected: int = Field(default=128, gt=0)
    """P, what that network gives to the generators; 64 in the paper's text models"""
    reduction: int = Field(default=8, gt=0)
    """D / reduction is R, the adapter's inner width; 32 in the paper's text models"""
    norms: tuple[Literal["before", "after"], ...] = ("before", "after")
    """where the adapter has a norm, whose gain and shift are made too"""
    sites: tuple[Site, ...] = ("mlp",)
    """what has an adapter"""
    share: Literal["block", "width"] = "block"
    """whether each block has its own networks, or all of one width share them"""
    train_norms: bool = False
    """whether the norms of the backbone train"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        serial, sites = self.insert == "serial", tuple(dict.fromkeys(self.sites))
        backbone.require(*(site if serial else f"{site}_branch" for site in sites))
        embeddings = TaskEmbeddings(self.names, self.embedding)
        wide, several = self.share == "width", len(sites) > 1
        positions = {site: [PlaceEmbedding(self.embedding)] if wide and several else [] for site in sites}
        joined = 2 + several if wide else 1
        projectors: dict[int, Projector] = {}
        generators: dict[tuple[int, Site], AdapterGenerator] = {}
        for block in backbone.blocks:
            own = [PlaceEmbedding(self.embedding)] if wide else []
            key = block.dim if wide else block.index
            if key not in projectors:
                projectors[key] = Projector(joined * self.embedding, self.hidden, self.projected)
            for site in sites:
                one = key, sites[0] if wide else site
                if one not in generators:
                    generators[one] = self._generator(block)
                more = [*own, *positions[site]]
                layer = GeneratedAdapter(embeddings, projectors[key], generators[one], more, whole=serial)
                place = block.parts[site if serial else f"{site}_branch"]
                yield place.after(layer) if serial else place.parallel(layer)
        if self.train_norms:
            for norm in backbone.norms:
                if norm.own:
                    yield norm.unfreeze()

    def _generator(self, block: Block) -> AdapterGenerator:
        norms = tuple(dict.fromkeys(self.norms))
        return AdapterGenerator(self.projected, block.dim, self.bottleneck(block), None, norms)
