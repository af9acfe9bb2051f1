"""Polyhistor-Lite: one network makes small adapters for all blocks, and kernels of each block scale them up."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.hyper_adapter import AdapterGenerator, Projector, ScaledAdapter, TaskEmbeddings
from ..method import register
from .polyhistor import FromTaskVectors


@register("polyhistor_lite", category="multi-task", family="adapter", paper="2210.03265", year=2022, venue="NeurIPS")
class PolyhistorLite(FromTaskVectors):
    """Polyhistor's adapters of width s D_0, scaled up from s small ones of the first block's width D_0.

    v_i = LN(W_2 ReLU(W_1 [z_t; y_i] + b_1) + b_2) for the task's vector z_t and the block's y_i, i = 1..s; one pair of
    generators of rank `rank` makes T_i from v_i. W = sum_i K_i (x) T_i, K (s, s, s) of the block for both matrices;
    biases and norms have a (s, s) each. z, y, K ~ N(0, 1), all maps N(0, 1e-4). Widths must be whole multiples of the
    first block's. The trunk runs once for each task of a batch.

    Sizes are not published; these give 0.41 M for Swin-T and four tasks, as the paper has. The authors' code multiplies
    s (in place of one) Kronecker products per matrix, and so does this.
    """

    rank: int = Field(default=19, gt=0)
    """of each small matrix that is made"""
    kernel_first: bool = True
    """K_i (x) T_i; otherwise T_i (x) K_i"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("mlp_branch" if self.insert == "parallel" else "mlp")
        first, norms, serial = backbone.blocks[0], tuple(dict.fromkeys(self.norms)), self.insert == "serial"
        embeddings = TaskEmbeddings(self.names, self.embedding)
        projector = Projector(2 * self.embedding, self.hidden, self.projected)
        generator = AdapterGenerator(self.projected, first.dim, self.bottleneck(first), self.rank, norms)
        for block in backbone.blocks:
            scale, rest = divmod(block.dim, first.dim)
            if rest:
                raise MissingPlace(
                    f"{block.name} has {block.dim} channels, which is no multiple of the {first.dim} of {first.name},"
                    " so that PolyhistorLite cannot scale up to them. Polyhistor takes any widths."
                )
            layer = ScaledAdapter(
                embeddings,
                projector,
                generator,
                self.embedding,
                scale,
                norms,
                kernel_first=self.kernel_first,
                whole=serial,
            )
            yield block.mlp.after(layer) if serial else block.mlp_branch.parallel(layer)
