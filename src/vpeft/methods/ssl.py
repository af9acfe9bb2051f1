"""SSL: scale the left singular subspace of each weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_scale import WeightScale
from ..method import Method, register

Target = Literal["q", "k", "v", "qkv", "proj", "fc1", "fc2", "conv"]


@register("ssl", category="partial", family="reparameter", paper="2407.05417", year=2024, venue="arXiv")
class SSL(Method):
    """A trained diagonal scales the input features of each projection.

    y = W (l * x) + b, l (D_in,), starting at one. In the paper's convention, y = x W, W becomes (diag(l) U) S V',
    a scaling of the left singular vectors, hence the name; its left is the input side of a linear layer. On qkv it acts
    as a change of the first norm's scale and shift, on fc1 of the second's. It folds into the weights.

    The paper does not say where it acts; all projections are the library's default, ("k", "v", "fc1") fits its counts.
    Weight decay would pull l to zero: leave it off (one-dimensional tensors are not decayed here).
    """

    variants = ({"targets": ("conv", "fc1", "fc2")},)

    targets: tuple[Target, ...] = ("qkv", "proj", "fc1", "fc2")
    """projections of each block; qkv is q, k and v where the model stores them apart"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for place in (place for target in self.targets for place in block.stored(target)):
                groups = getattr(place.module, "groups", 1)
                yield place.reparametrize(WeightScale(tuple(place.weight.shape), groups=groups, outputs=False))
