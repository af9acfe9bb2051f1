"""Polyhistor: adapters whose low-rank weights small networks of each block make from a vector of the task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.hyper_adapter import AdapterGenerator, GeneratedAdapter, Projector, TaskEmbeddings
from ..method import ONE_TASK, Method, register


class FromTaskVectors(Method):
    """What Hyperformer, Polyhistor and Polyhistor-Lite share: sizes, the places, and one trunk pass for each task."""

    tasks: tuple[str, ...] = ()
    """names of the tasks; filled in from the heads"""
    embedding: int = Field(default=64, gt=0)
    """E, length of the vector of a task"""
    hidden: int = Field(default=128, gt=0)
    """H, inner width of the network behind that vector"""
    projected: int = Field(default=64, gt=0)
    """P, what that network gives to the generators"""
    reduction: int = Field(default=2, gt=0)
    """D / reduction is R, the adapter's inner width"""
    norms: tuple[Literal["before", "after"], ...] = ("after",)
    """where the adapter has a norm, whose gain and shift are made too"""
    insert: Literal["parallel", "serial"] = "parallel"
    """beside the MLP branch, or behind the MLP inside it"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    @property
    def runs_per_task(self) -> bool:
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, or the only one where none is named."""
        return self.tasks or (ONE_TASK,)

    def bottleneck(self, block: Block) -> int:
        """R of a block's adapter.

        Raises:
            MissingPlace: the block has too few channels for this reduction.
        """
        if block.dim < self.reduction:
            raise MissingPlace(
                f"{block.name} has {block.dim} channels, too few for {type(self).__name__}.reduction ="
                f" {self.reduction}. Give a smaller one."
            )
        return block.dim // self.reduction


@register("polyhistor", category="multi-task", family="adapter", paper="2210.03265", year=2022, venue="NeurIPS")
class Polyhistor(FromTaskVectors):
    """x' = x + MLP(LN x) + A_t(x) in every block; networks of the block make A_t from a learned vector z_t of the task.

    A(x) = LN(U GELU(D x + b_d) + b_u), x (B, ..., D); v = LN(W_2 ReLU(W_1 z_t + b_1) + b_2). Each matrix of a rows and
    b columns is a product (a, `rank`) (`rank`, b), all of whose numbers are one linear map of v; biases and the norm's
    gain and shift are linear maps of v too. z ~ N(0, 1), all maps N(0, 1e-4), biases zero: step 0 is near the frozen
    model and not equal to it. The trunk runs once for each task of a batch.

    Sizes are not published; these give 6.37 M for Swin-T and four tasks, the paper has 6.41 M. The authors' output
    norms of each stage belong to the decoder and are left out here. `insert` = "parallel" is x' = DP(MLP(LN x)) + (x +
    A(x)), "serial" acts on MLP(LN x) before drop path; their code has both and no configuration says which.
    """

    rank: int = Field(default=6, gt=0)
    """of each matrix that is made"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("mlp_branch" if self.insert == "parallel" else "mlp")
        embeddings = TaskEmbeddings(self.names, self.embedding)
        for block in backbone.blocks:
            projector = Projector(self.embedding, self.hidden, self.projected)
            generator = AdapterGenerator(
                self.projected, block.dim, self.bottleneck(block), self.rank, tuple(dict.fromkeys(self.norms))
            )
            serial = self.insert == "serial"
            layer = GeneratedAdapter(embeddings, projector, generator, whole=serial)
            yield block.mlp.after(layer) if serial else block.mlp_branch.parallel(layer)
