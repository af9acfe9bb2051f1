"""LoRA: low-rank updates of chosen projections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..layers.low_rank import LowRank, LowRankFromStart, LowRankWeight, LowRankWeightFromStart
from ..layers.low_rank_starts import (
    PARTS_OF_WEIGHT,
    InputDirections,
    Start,
    from_weight,
    start_gaussian,
    start_orthogonal,
)
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

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

    `use_rslora`: s = alpha / sqrt(R) (rsLoRA, 2312.03732). `start`: gaussian, A ~ N(0, 1 / R); orthogonal, B A = 0 with
    both factors random; pissa (2404.02948) and olora (2406.01775), s B A is the part of W of the R largest singular
    values, or of the first R columns of its QR, and the frozen rest is W - s B A, so step 0 is the frozen model up to
    rounding; eva (2410.07170), A is the R principal directions of what enters the projection, which `prepare` measures.
    Here W itself stays: s (B A - B0 A0) is added to it, with the frozen start B0, A0. EVA's redistribution of ranks
    over the layers is left out (rho = 1). The convolutions' starts are ours: peft has them for linears only.
    `rate_ratio`: B learns faster than A (LoRA+, 2402.12354).
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
    use_rslora: bool = False
    """s = alpha / sqrt(R) instead of alpha / R, which keeps the size of the update for large R"""
    start: Start = "kaiming"
    """where A and B start: kaiming (as nn.Linear, B zero), gaussian, orthogonal, pissa, olora, eva"""
    rate_ratio: float = Field(default=1.0, gt=0.0)
    """learning rate of B over that of A; 16 in LoRA+"""

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the ratio where it is one, so that stored runs and files from before it stay what they are."""
        fields: dict[str, Any] = write(self)
        return {key: value for key, value in fields.items() if key != "rate_ratio" or value != 1.0}

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        alpha = self.rank if self.alpha is None else self.alpha
        scale = alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)
        for place in chosen_places(backbone, self.targets, type(self).__name__):
            layer = self._beside_conv(place, scale) if place.is_conv else self._beside_linear(place, scale)
            if self.rate_ratio != 1.0:
                layer.rate_factors = {"B": self.rate_ratio}  # type: ignore[assignment]
            yield place.reparametrize(layer) if place.is_conv else place.parallel(layer)

    def _beside_linear(self, place: Projection, scale: float) -> nn.Module:
        if self.start in PARTS_OF_WEIGHT:
            return LowRankFromStart(*from_weight(self.start, place, self.rank, scale), scale, self.dropout)
        return self._started(LowRank(place.width_in, place.width, self.rank, scale, self.dropout))

    def _beside_conv(self, place: Projection, scale: float) -> nn.Module:
        shape = tuple(place.weight.shape)
        if self.start in PARTS_OF_WEIGHT:
            return LowRankWeightFromStart(shape, *from_weight(self.start, place, self.rank, scale), scale)
        return self._started(LowRankWeight(shape, self.rank, scale))

    def _started(self, layer: LowRank | LowRankWeight) -> nn.Module:
        if self.start == "gaussian":
            start_gaussian(layer.A)
        elif self.start == "orthogonal":
            start_orthogonal(layer.A, layer.B)
        elif self.start == "eva":
            layer.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        return layer

    @property
    def reads_data(self) -> bool:
        return self.start == "eva"

    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        fresh = [
            InputDirections(edit.place, edit.layer)
            for edit in tuned.adapter().edits
            if isinstance(edit.place, Projection)
            and isinstance(edit.layer, (LowRank, LowRankWeight))
            and not getattr(edit.layer, "measured", True)  # a loaded or resumed adapter keeps its directions
        ]
        if not fresh:
            return
        modes = {module: module.training for module in tuned.modules()}
        tuned.eval()
        handles = [one.watch() for one in fresh]
        try:
            with torch.no_grad():  # B is zero, so this is the frozen model
                for images, _ in batches:
                    tuned.features(images.to(next(tuned.parameters()).device))
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode
        for one in fresh:
            layer = one.layer
            assert isinstance(layer, (LowRank, LowRankWeight))
            with torch.no_grad():
                layer.A.copy_(one.largest(self.rank))
                layer.get_buffer("measured").fill_(True)

    def resolved(self, backbone: Backbone) -> LoRA:
        """With the targets stated, where all blocks get the same ones."""
        return self if (found := same_targets(backbone, self.targets)) is None else self.model_copy(update=found)


class OnProjections(Method):
    """A method that changes the weights of chosen projections, with LoRA's targets."""

    targets: tuple[Target, ...] | None = None
    """projections of each block: q, k, v, qkv, proj, fc1, fc2, conv (all convolutions of that name), or all; None for q
    and v where the block has attention, else for all"""

    def places(self, backbone: Backbone) -> list[Projection]:
        """The projections that it changes, in order."""
        return list(chosen_places(backbone, self.targets, type(self).__name__))

    def resolved(self, backbone: Backbone) -> Self:
        """With the targets stated, where all blocks get the same ones."""
        return self if (found := same_targets(backbone, self.targets)) is None else self.model_copy(update=found)


def same_targets(backbone: Backbone, targets: tuple[Target, ...] | None) -> dict[str, tuple[Target, ...]] | None:
    """The field `targets` with what None means on this backbone; None where it is given, or differs by block."""
    chosen = {_default_targets(block) for block in backbone.blocks} or {("all",)}
    return None if targets is not None or len(chosen) > 1 else {"targets": chosen.pop()}


def chosen_places(backbone: Backbone, targets: tuple[Target, ...] | None, method: str) -> Iterator[Projection]:
    """The projections that these targets mean, block by block.

    Raises:
        MissingPlace: a block has no such projection; the message lists those that it has.
    """
    if not backbone.blocks and (targets is None or "all" in targets):
        yield from backbone.projections
    for block in backbone.blocks:
        for target in _default_targets(block) if targets is None else targets:
            found = _named(block, target)
            if not found:
                have = [t for t in get_args(Target) if t != "all" and _named(block, t)]
                raise MissingPlace(
                    f"{method} was asked for {target!r}, but {block.name} of {backbone.facts.architecture} has no such"
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
