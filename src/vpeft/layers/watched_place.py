"""The tokens that pass a place while somebody watches, without an edit there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..backbones.places import Place, Projection
from ..backbones.points import Layout, MissingPlace


def watch_tokens(place: Place, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Call `see` with the tokens (B, N, D) of each pass at the output of a place, without prefix; a handle ends it.

    Maps are flattened row by row.

    Raises:
        MissingPlace: nothing can be read there.
    """
    point = place.exit
    if point is None:
        raise MissingPlace(f"Nothing can be read at {place.name}.")
    at = point.item
    first = place.layout is Layout.CHANNELS_FIRST or (isinstance(place, Projection) and place.is_conv)

    def rows(x: Tensor) -> None:
        x = x.movedim(1, -1) if first else x
        see(x.flatten(1, -2)[:, place.prefix if place.layout is Layout.TOKENS else 0 :])

    def entering(_module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows(named[at] if isinstance(at, str) and at in named else args[at if isinstance(at, int) else 0])

    def leaving(_module: Any, _args: Any, output: Any) -> None:
        rows(output[at] if isinstance(output, tuple) and isinstance(at, int) else output)

    if point.side == "input":
        return point.module.register_forward_pre_hook(entering, with_kwargs=True)
    return point.module.register_forward_hook(leaving)
