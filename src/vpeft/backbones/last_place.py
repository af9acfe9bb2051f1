"""Where a head finds the last tokens or the last map of a backbone: behind the final norm, or behind the last block."""

from __future__ import annotations

from typing import Any

from .backbone import Backbone
from .places import Place
from .points import Layout, MissingPlace


def last_tokens(backbone: Backbone, named: Any = None) -> Place:
    """The last place that has a token or cell for each part of the image, or the place that is `named`.

    It is the final norm where that comes before the pooling, else the last block, else the last stage.

    Raises:
        MissingPlace: there is none, or the named place has one vector for each image.
    """
    for place in _candidates(backbone, named):
        if place.layout is not Layout.VECTOR:
            return place
    raise MissingPlace(_nothing(backbone, named, "tokens or a map"))


def last_map(backbone: Backbone, named: Any = None) -> Place:
    """The last place whose tokens lie on a grid of rows and columns, or the place that is `named`.

    Raises:
        MissingPlace: there is none, or the named place has no grid.
    """
    for place in _candidates(backbone, named):
        if place.maps:
            return place
    raise MissingPlace(_nothing(backbone, named, "a map of rows and columns"))


def _candidates(backbone: Backbone, named: Any) -> list[Place]:
    if named is not None:
        place = backbone.place(str(named))
        return [place] if place.exit is not None else []
    ends: list[Place] = [*backbone.blocks[-1:], *backbone.stages[-1:]]
    if backbone.has_norm and (not ends or backbone.norm.grid == ends[0].grid):
        ends.insert(0, backbone.norm)
    return [place for place in ends if place.exit is not None]


def _nothing(backbone: Backbone, named: Any, wanted: str) -> str:
    if named is not None:
        return f"{named} of {backbone.facts.architecture} does not give {wanted}, and this head reads such."
    return (
        f"{backbone.facts.architecture} has no place that gives {wanted}, and this head reads such. Use a head that"
        ' reads the pooled feature (linear, mlp, cosine, batchnorm_linear), or name a place: head(place="blocks.3").'
    )
