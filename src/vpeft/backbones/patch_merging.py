"""Swin's merging of patches as three libraries have it: a norm and a reduction, in either order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .builders import Where, norm, projection
from .places import Place


def merging_places(number: int, merging: Any, where: Where) -> dict[str, Place]:
    """The norm and the reduction before stage `number`, in the order in which they run.

    The first version of Swin norms the four patches that it puts together, and the reduction alone reads them; the
    second norms what was reduced. The width of the norm tells which it is.

    Args:
        merging: with `norm` and `reduction`.
        where: of the stage's first block.
    """
    prefix, here = f"stages.{number}.downsample", replace(where, depth=where.depth - 1)
    reduction = projection(f"{prefix}.reduction", merging.reduction, here)
    width = len(merging.norm.weight)
    first = width == reduction.width_in
    own = norm(f"{prefix}.norm", merging.norm, here, width, (reduction,) if first else ())
    return {place.name: place for place in ((own, reduction) if first else (reduction, own))}
