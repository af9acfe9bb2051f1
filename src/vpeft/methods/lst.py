"""LST: a narrow copy of the transformer beside the frozen one, fed by ladders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..layers.fisher import fisher
from ..layers.ladder import Ladder
from ..layers.pooling import side_pooling
from ..layers.side_block import prune, side_heads
from ..method import BadField, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

PRUNED = ("q", "k", "v", "proj", "fc1", "fc2")


@register("lst", category="addition", family="side", paper="2206.06522", year=2022, venue="NeurIPS")
class LST(Method):
    """A side transformer of width s = D / r reads every frozen block and alone makes the feature.

    h_0 = W_0 b_0 + c_0; for each kept block i: g_i = sigmoid(a_i / T), u_i = g_i h_{i-1} + (1 - g_i)(W_i b_i + c_i),
    h_i = SideBlock_i(u_i); y = W_up pool(LN(h_L)) + c_up. b_0 (B, N, D) is the embedding, b_i the output of block i,
    W_i (s, D). Nothing is written back, so no gradient enters the frozen model. y (B, D) replaces the pooled feature;
    the side's tokens are pooled as the backbone pools its own (pooling and W_up commute).

    Departures: the published code is for T5; this ViT form is the one whose count (2.38 M on ViT-B/16) papers quote.
    Side blocks start at random; the paper prunes the frozen weights by Fisher information: `init="fisher"`, for which
    `prepare` takes the fresh head's cross-entropy; "magnitude" prunes by squared weight and needs no data. In stages of
    several widths, untreated by the paper, the side is averaged over cells and mapped where the grid shrinks.
    """

    reduction: int = Field(default=8, gt=0)
    """r; D / r is the side's width"""
    temperature: float = Field(default=0.1, gt=0.0)
    """T"""
    gate: Literal["learnable", "none"] = "learnable"
    """"none" adds the ladder without weights: u = h + W b + c"""
    gate_start: float = 0.0
    """a_i at the start (`gate_alpha`)"""
    keep: tuple[int, ...] | None = None
    """blocks that have a side block; None for all (layer dropping)"""
    heads: int | None = Field(default=None, gt=0)
    """of each side block; None for as many as the frozen block has, the most. Attention is most of its cost"""
    bias: bool = True
    """c_i of the ladders"""
    gate_after: bool = False
    """mix behind the side block instead of before it (`add_residual_after`)"""
    merge_last: bool = False
    """y <- g y + (1 - g) times the frozen feature, which has passed its final norm"""
    init: Literal["random", "magnitude", "fisher"] = "random"
    """of the side blocks: random, or parts of the frozen block, by squared weight or by Fisher information"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def _kept(self, backbone: Backbone) -> list[Block]:
        kept = [block for block in backbone.blocks if self.keep is None or block.index in self.keep]
        if len(kept) != len(set(self.keep or kept)) or not kept:
            raise BadField(f"LST.keep = {self.keep} does not fit: the blocks are 0 to {len(backbone.blocks) - 1}.")
        return kept

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        kept = self._kept(backbone)
        if self.init != "random":
            backbone.require("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
        read = (backbone.embedding, *kept)
        alike = len(backbone.stages) == 1 and backbone.embedding.grid == kept[0].grid
        ladder = Ladder(
            [backbone.embedding.width, *(block.dim for block in kept)],
            [place.grid if alike else place.cells for place in read],
            side_heads(map(_heads, kept), self.heads, None if self.init == "random" else self.reduction),
            reduction=self.reduction,
            temperature=self.temperature,
            gated=self.gate == "learnable",
            gate_start=self.gate_start,
            bias=self.bias,
            gate_after=self.gate_after,
            merge_last=self.merge_last,
            chosen_by_data=self.init == "fisher",
            width=backbone.facts.width,
            how=side_pooling(backbone.facts.pooling, backbone.facts.prefix_tokens),
            prefix=backbone.facts.prefix_tokens,
        )
        if self.init == "magnitude":
            prune(list(ladder.blocks), _weights(kept), [_heads(block) for block in kept])
        yield backbone.outlet.after(ladder, reads=read)

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        ladder = next(module for module in tuned.adapter().modules() if isinstance(module, Ladder))
        if ladder.chosen is None or bool(ladder.chosen):
            return  # no data are asked for, or a loaded or resumed adapter keeps its start
        kept = self._kept(tuned.description)
        places = [block.projection(name) for block in kept for name in PRUNED]
        head = tuned.head
        if head is None:
            raise BadField('LST.init = "fisher" measures a loss, and there is no head: give `tune` a num_classes.')
        with tuned.disable():
            found = iter(fisher(lambda images: head(tuned.features(images)), places, batches))
        powers = [{name: next(found) for name in PRUNED} for _ in kept]
        prune(list(ladder.blocks), _weights(kept), [_heads(block) for block in kept], powers)
        ladder.chosen.fill_(True)


def _weights(blocks: list[Block]) -> list[dict[str, Tensor]]:
    return [{name: block.projection(name).weight for name in PRUNED} for block in blocks]


def _heads(block: Block) -> int:
    return block.attn.core.heads if block.has("attn.core") else 1
