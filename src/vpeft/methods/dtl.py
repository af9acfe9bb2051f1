"""DTL: low-rank reads of every block, summed on the side and written back from the middle on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.blocks import Stage
from ..backbones.edits import Edit
from ..layers.compact_side import PatchMean, SideSum, SwishWrite
from ..method import BadField, Method, register


@register("dtl", category="addition", family="side", paper="2312.07856", year=2024, venue="AAAI")
class DTL(Method):
    """A compact side network: h gathers low-rank maps of all block inputs, and late blocks add a sharp swish of it.

    h_i = h_{i-1} + x_i A_i^T B_i^T with x_i (B, N, D) the input of block i, A_i (R, D), B_i (D, R), h_{-1} = 0; from
    block s on x_{i+1} = Block_i(x_i) + theta(h_i), theta(h) = h sigmoid(beta h). All tokens take part. The feature is
    the final norm of the mean over the patch tokens. As B_i starts at zero, the tokens of step 0 are the frozen ones.
    Gradients pass the frozen blocks s + 1 ... only.

    On stages of several widths h starts again at zero in each stage, and stages without a write are not read (what is
    read there would go nowhere). Where there is no class token the backbone's own pooling stays, as in the code.
    Activation checkpointing is refused: the side sum passes from block to block beside the hidden state.
    """

    rank: int = Field(default=2, gt=0)
    """R; 2 on ViT, 4 on Swin"""
    beta: float = 100.0
    """sharpness of theta"""
    first_read: int = Field(default=0, ge=0)
    """first block that is read; 4 on Swin-B"""
    first_write: int | None = Field(default=None, ge=0)
    """s, first block that is written to; None for the middle (6 of 12); 14 on Swin-B"""
    pooling: Literal["patches", "backbone"] = "patches"
    """mean of the patches, then the final norm (published), or what the backbone does by itself"""

    @property
    def starts_as_identity(self) -> bool:
        return self.pooling == "backbone"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        first = len(backbone.blocks) // 2 if self.first_write is None else self.first_write
        if not self.first_read <= first < len(backbone.blocks):
            raise BadField(
                f"{type(self).__name__} reads from block {self.first_read} and writes from block {first}; the first"
                f" write must not be before the first read, and {backbone.facts.architecture} has"
                f" {len(backbone.blocks)} blocks."
            )
        for stage in backbone.stages:
            if stage.blocks[-1].index < first:
                continue
            fusion, side = self._fusion(stage), None
            for block in stage.blocks:
                if block.index >= self.first_read:
                    reads = () if side is None else (side,)
                    side = block.input.tap(SideSum(block.dim, self.rank), reads=reads)
                    yield side
                if block.index >= first and side is not None:
                    if fusion is not None:
                        block.require_grid()
                    yield block.after(SwishWrite(self.beta, fusion), reads=(side,))
        if self.pooling == "patches" and backbone.facts.prefix_tokens:
            yield backbone.at_end(PatchMean(backbone.facts.prefix_tokens))

    def _fusion(self, stage: Stage) -> nn.Module | None:
        """What the writes of one stage share; plain DTL has nothing there."""
        return None
