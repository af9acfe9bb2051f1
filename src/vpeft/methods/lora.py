"""LoRA: low-rank updates of chosen projections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..layers.low_rank import LowRank, LowRankWeight
from .method import Method
from .registry import register

Target = Literal["q", "k", "v", "qkv", "proj", "fc1", "fc2", "conv"]


@register("lora", category="partial", family="reparameter", paper="2106.09685", year=2022, venue="ICLR")
class LoRA(Method):
    """A low-rank product beside chosen projections of every block; it can be folded into their weights.

    y = W x + b + s B A drop(x), with A (R, D_in), B (D_out, R), s = alpha / R. x is the projection's own input, so for
    attention the normed tokens (B, N, D). A starts as nn.Linear does, B at zero: step 0 is the frozen model.

    Departures: convolutions (`conv`) are changed at the weight, W + s reshape(B A), which for groups = 1 is the usual
    pair of convolutions; dropout does not act there. `qkv` is one A for the fused projection, as NOAH and OSU use it.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=8, gt=0)
    """R"""
    alpha: float | None = None
    """numerator of the scale alpha / R; None means R, so that s = 1 (the visual PEFT papers)"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """on the input of A, in training"""
    targets: tuple[Target, ...] = ("q", "v")
    """projections of each block: q, k, v, qkv, proj, fc1, fc2, conv"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for block in backbone.blocks:
            for target in self.targets:
                place = self._find(backbone, block.name, target)
                if place.is_conv:
                    yield place.reparametrize(LowRankWeight(tuple(place.weight.shape), self.rank, scale))
                else:
                    yield place.parallel(LowRank(place.width_in, place.width, self.rank, scale, self.dropout))

    def _find(self, backbone: Backbone, block: str, target: str) -> Projection:
        inner = {"conv": "conv", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}.get(target, f"attn.{target}")
        try:
            place = backbone.place(f"{block}.{inner}")
        except MissingPlace:
            have = [t for t in ("q", "k", "v", "qkv", "proj", "fc1", "fc2", "conv") if self._exists(backbone, block, t)]
            raise MissingPlace(
                f"LoRA was asked for {target!r}, but {block} of {backbone.facts.architecture} has no such projection."
                f" Its targets are: {', '.join(have) or 'none'}."
            ) from None
        assert isinstance(place, Projection)
        return place

    @staticmethod
    def _exists(backbone: Backbone, block: str, target: str) -> bool:
        inner = {"conv": "conv", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}.get(target, f"attn.{target}")
        return any(place.name == f"{block}.{inner}" for place in backbone.places())
