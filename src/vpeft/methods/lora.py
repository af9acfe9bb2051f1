"""LoRA: low-rank updates of chosen projections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..layers.low_rank import LowRank, LowRankWeight
from ..method import Method, register

Target = Literal["q", "k", "v", "qkv", "proj", "fc1", "fc2", "conv", "all"]


@register("lora", category="partial", family="reparameter", paper="2106.09685", year=2022, venue="ICLR")
class LoRA(Method):
    """A low-rank product beside chosen projections of every block; it can be folded into their weights.

    y = W x + b + s B A drop(x), with A (R, D_in), B (D_out, R), s = alpha / R. x is the projection's own input, so for
    attention the normed tokens (B, N, D). A starts as nn.Linear does, B at zero: step 0 is the frozen model.

    Departures: convolutions (`conv`) are changed at the weight, W + s reshape(B A), which for groups = 1 is the usual
    pair of convolutions; dropout does not act there. `qkv` is one A for the fused projection, as NOAH and OSU use it.
    `all` is every linear and convolution of the blocks, and of the whole model where no blocks are described. Without
    targets it is q and v, as in the paper, in blocks with attention, and all of the others.
    """

    variants = ({"targets": ("fc1", "fc2")}, {"targets": ("conv",)}, {"targets": ("all",)})

    rank: int = Field(default=8, gt=0)
    """R"""
    alpha: float | None = None
    """numerator of the scale alpha / R; None means R, so that s = 1 (the visual PEFT papers)"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """on the input of A, in training"""
    targets: tuple[Target, ...] | None = None
    """projections of each block: q, k, v, qkv, proj, fc1, fc2, conv (all convolutions of that name), or all; None for q
    and v where the block has attention, else for all"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for place in self._places(backbone):
            if place.is_conv:
                yield place.reparametrize(LowRankWeight(tuple(place.weight.shape), self.rank, scale))
            else:
                yield place.parallel(LowRank(place.width_in, place.width, self.rank, scale, self.dropout))

    def resolved(self, backbone: Backbone) -> LoRA:
        """With the targets stated, where all blocks get the same ones."""
        chosen = {_default_targets(block) for block in backbone.blocks} or {("all",)}
        if self.targets is not None or len(chosen) > 1:
            return self
        return self.model_copy(update={"targets": chosen.pop()})

    def _places(self, backbone: Backbone) -> Iterator[Projection]:
        if not backbone.blocks and (self.targets is None or "all" in self.targets):
            yield from backbone.projections
        for block in backbone.blocks:
            for target in _default_targets(block) if self.targets is None else self.targets:
                found = _named(block, target)
                if not found:
                    have = [t for t in get_args(Target) if t != "all" and _named(block, t)]
                    raise MissingPlace(
                        f"LoRA was asked for {target!r}, but {block.name} of {backbone.facts.architecture} has no such"
                        f" projection. Its targets are: {', '.join([*have, 'all'])}."
                    )
                yield from found


def _default_targets(block: Block) -> tuple[Target, ...]:
    """q and v where the block has attention, as in the paper; else every linear and convolution."""
    return ("q", "v") if block.has("attn.q") and block.has("attn.v") else ("all",)


def _named(block: Block, target: str) -> list[Projection]:
    """The projections of a block that a target means."""
    if target == "all":
        return block.projections
    if target == "conv":
        return [place for place in block.projections if place.name.rpartition(".")[2].startswith("conv")]
    try:
        return [block.projection(target)]
    except MissingPlace:
        return []
