"""SSB: scale both singular subspaces of each weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_scale import WeightScale
from ..method import Method, register
from .ssl import Target


@register("ssb", category="partial", family="reparameter", paper="2407.05417", year=2024, venue="arXiv")
class SSB(Method):
    """Trained diagonals scale the input and the output features of each projection.

    y = r * (W (l * x)) + b, l (D_in,), r (D_out,), both starting at one; b is not scaled. In the paper's convention
    y = x W it is diag(l) W diag(r): both singular spaces of W are scaled. It folds into the weights.

    The paper does not say where it acts; all projections are the library's default, ("k", "v", "fc1") fits its counts.
    Weight decay would pull both to zero: leave it off (one-dimensional tensors are not decayed here).
    """

    variants = ({"targets": ("conv", "fc1", "fc2")},)

    targets: tuple[Target, ...] = ("qkv", "proj", "fc1", "fc2")
    """projections of each block; qkv is q, k and v where the model stores them apart"""
    sides: Literal["both", "outputs"] = "both"
    """outputs: r alone, the paper's reading of IA3"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for place in (place for target in self.targets for place in block.stored(target)):
                groups = getattr(place.module, "groups", 1)
                inputs = self.sides == "both"
                yield place.reparametrize(WeightScale(tuple(place.weight.shape), groups=groups, inputs=inputs))
