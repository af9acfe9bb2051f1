"""FacT-TT: all weight changes of the network as one tensor train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..backbones.points import MissingPlace
from ..layers.factored import Factors, TensorTrain
from ..method import Method, register

Target = Literal["q", "k", "v", "proj", "fc1", "fc2"]
TARGETS: tuple[Target, ...] = ("q", "k", "v", "proj", "fc1", "fc2")


def pieces(place: Projection, width: int) -> tuple[int, int]:
    """How many pieces of `width` go into a projection and come out of it.

    Raises:
        MissingPlace: its sizes are no multiples of the width, or both are larger, so the factors do not fit.
    """
    pair = place.width_in // width, place.width // width
    fits = place.width_in % width == 0 and place.width % width == 0 and min(pair) == 1
    if not fits:
        raise MissingPlace(
            f"{place.name} maps {place.width_in} to {place.width} channels, which does not split into matrices of"
            f" {width} x {width}. Leave it out of `targets`."
        )
    return pair


@register("fact_tt", category="partial", family="reparameter", paper="2212.03145", year=2023, venue="AAAI")
class FacTTT(Method):
    """The changes of all D x D matrices share their outer factors; each has a small core.

    dW_j = s V S_j U, U (R, D), V (D, R), S_j (R, R): y = W x + b + s V drop(S_j U x). A matrix of 4 D x D (fc1) is four
    of them below each other with S (4 R, R), one of D x 4 D (fc2) four beside each other with S (R, 4 R). V starts at
    zero, so step 0 is the frozen model. It folds into the weights.

    U and V belong to all blocks of one width: on a ViT to the whole network, on Swin and ConvNeXt to each stage (the
    authors' Swin; ConvNeXt, with its two pointwise linears, is ours).
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=16, gt=0)
    """R; 8 or 16 in the paper"""
    scale: float = 1.0
    """s; the authors choose it for each task from 0.01, 0.1, 1, 10, 100"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """between core and V"""
    targets: tuple[Target, ...] = TARGETS
    """projections of each block"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        widths = dict.fromkeys(block.dim for block in backbone.blocks)
        shared = {width: Factors(width, self.rank) for width in widths}
        for block in backbone.blocks:
            for target in self.targets:
                place = block.projection(target)
                coming, going = pieces(place, block.dim)
                yield place.parallel(TensorTrain(shared[block.dim], coming, going, self.scale, self.dropout))
