"""Consolidator: grouped linear maps beside every linear layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Norm
from ..backbones.points import MissingPlace
from ..layers.grouped_linear import GroupedLinear
from ..method import Method, register
from .ssl import Target


@register("consolidator", category="addition", family="adapter", paper="2305.00603", year=2023, venue="ICLR")
class Consolidator(Method):
    """y = W x + c + sum_j DP(G_j shuf(x) + h_j) in qkv, proj, fc1 and fc2, G_j (out, in / g_j) in g_j groups.

    Outputs of group t read the inputs of group t alone. shuf views the channels as (g, in / g) and transposes them. DP
    drops a branch for a sample. All norms train, and the biases inside the blocks. It folds: W gains the blocks of G_j
    at their places (the shuffle undone), c gains the sum of h_j.

    G and h start uniform within 0.001, so step 0 is nearly the frozen model, but not exactly. The released training
    script never turns the shuffle on, though the paper has it. In windows DP draws for each window.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"groups": (24,)},
        {"groups": (4,)},
        {"groups": (4,), "targets": ("fc1", "fc2")},
    )

    targets: tuple[Target, ...] = ("qkv", "proj", "fc1", "fc2")
    """projections of each block; qkv is q, k and v where the model stores them apart"""
    groups: tuple[int, ...] = Field(default=(384,), min_length=1)
    """g_j, one for each branch; each must divide the sizes of the layers"""
    shuffle: bool = False
    """whether x is shuffled before G_j"""
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    """rate of DP; the authors choose 0, 0.2, 0.5 or 0.8 by task"""
    train_norms: bool = True
    """whether the scales and shifts of all norms train"""
    train_biases: bool = True
    """whether the biases inside the blocks train"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for place in (place for target in self.targets for place in block.stored(target)):
                weight = place.weight
                if weight[0, 0].numel() > 1 or weight.shape[1] != place.width_in:
                    raise MissingPlace(f"{place.name} is a convolution of a neighbourhood; Consolidator needs linears.")
                for groups in self.groups:
                    if place.width % groups or place.width_in % groups:
                        raise MissingPlace(
                            f"{place.name} maps {place.width_in} to {place.width} channels, which {groups} groups do"
                            " not divide. Choose `groups` that divide both."
                        )
                    layer = GroupedLinear(place.width_in, place.width, groups, self.shuffle, self.drop_path)
                    if place.name.endswith(".attn.k"):
                        why = "the softmax over keys does not see what is the same for every key"
                        layer.dormant = {"bias": why}
                    yield place.parallel(layer)
            for part in block.walk() if self.train_biases else ():
                names = [name for name in part.own if name.rpartition(".")[2] == "bias"]
                if names and not isinstance(part, Norm):
                    yield part.unfreeze(*names)
        for norm in backbone.norms if self.train_norms else ():
            if norm.own:
                yield norm.unfreeze()
