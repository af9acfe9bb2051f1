"""The linear maps of blocks as papers count them: q, k and v apart, also where a model stores them fused."""

from __future__ import annotations

from collections.abc import Sequence

from ..backbones.backbone import Backbone
from ..backbones.places import Projection
from ..backbones.points import MissingPlace


def linear_places(backbone: Backbone, method: str, names: Sequence[str] = ()) -> list[Projection]:
    """Those of all blocks, or the named ones alone; convolutions are left out.

    Raises:
        MissingPlace: there is none, or none of a name.
    """
    found = [place for block in backbone.blocks for place in block.walk() if isinstance(place, Projection)]
    parts = {place.name.rpartition(".")[0] for place in found if place.rows is not None}
    linear = [
        place
        for place in found
        # what is fused is told by its parts
        if not place.is_conv and not (place.name.endswith(".qkv") and place.name.rpartition(".")[0] in parts)
    ]
    if not linear:
        raise MissingPlace(
            f"{method} changes the linear maps of blocks, and {backbone.facts.architecture} has none in its blocks."
        )
    known = {place.name: place for place in linear}
    lacking = [name for name in names if name not in known]
    if lacking:
        raise MissingPlace(
            f"{method} was asked for {lacking[0]!r}, which is no linear map of {backbone.facts.architecture}."
            f" It has: {', '.join(list(known)[:8])} ..."
        )
    return [known[name] for name in names] if names else linear
