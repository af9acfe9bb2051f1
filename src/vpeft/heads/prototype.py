"""A classifier by the nearest class mean, as far as the angle goes: nothing needs to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.features import Features
from ..head import BadHead, Head, with_rows_of
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch


class PrototypeHead(Head):
    """y_k = cos(f, w_k), where w_k is the mean feature of class k, and f is read at one place or several in a row.

    The rows start at random; `set_rows` enters the means. f = [query; outlet] is what APER compares: the frozen model's
    feature and the adapted one, side by side (Zhou et al., arXiv 2303.07338).

    Args:
        width: D, the channels of all places together.
        outputs: classes.
        places: of vectors: "outlet", the pooled feature, and "query", that of the frozen model.
    """

    kind = "prototype"

    def __init__(self, width: int, outputs: int, places: Sequence[str] = ("outlet",)) -> None:
        super().__init__()
        unknown = [place for place in places if place not in ("outlet", "query")]
        if unknown or not places:
            raise BadHead(f"The head 'prototype' reads vectors, at outlet, at query, or at both; not at {unknown}.")
        self.reads = tuple(places)
        self.weight = nn.Parameter(torch.empty(outputs, width))
        nn.init.trunc_normal_(self.weight, std=HEAD_STD)

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on a backbone: as wide as its places together."""
        places = options.get("places", ("outlet",))
        found = sum(width if place == "outlet" else backbone.facts.width for place in places)
        return cls.with_options(options, width=found, outputs=outputs)

    def features(self, features: Features | Tensor) -> Tensor:
        """f (B, D): what it reads, in a row."""
        if isinstance(features, Tensor):
            return features
        return torch.cat([features[place] for place in self.reads], dim=-1)

    @torch.no_grad()
    def set_rows(self, first: int, means: Tensor) -> None:
        """Enter the mean features (K, D) of the classes from number `first` on."""
        self.weight[first : first + len(means)] = means.to(self.weight)

    def grown(self, outputs: int) -> Self:
        """With further rows; see `Head.grown`."""
        fresh = type(self)(**{**self.settings, "outputs": outputs}).to(self.weight)
        with_rows_of(fresh, self)
        return fresh

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, outputs), each from -1 to 1."""
        directions = functional.normalize(self.features(features), dim=-1)
        return functional.linear(directions, functional.normalize(self.weight, dim=-1))
