"""An edit: a place, a verb and a layer, as plain data. Nothing is touched until injection carries it out.

It lives beside the places, because a place makes it; `injection` is the only code that acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from .places import Place

Verb = Literal[
    "before", "after", "parallel", "wrap", "replace", "insert_tokens", "tap", "reparametrize", "extend", "unfreeze"
]
VERBS: tuple[Verb, ...] = (
    "before",
    "after",
    "parallel",
    "wrap",
    "replace",
    "insert_tokens",
    "tap",
    "reparametrize",
    "extend",
    "unfreeze",
)
Lifetime = Literal["span", "pooled"]


@dataclass(frozen=True, eq=False)
class Edit:
    """What a method asks for at one place.

    Attributes:
        place: where.
        verb: how the layer joins the computation there.
        layer: the small trainable module; None for `unfreeze`.
        reads: what else the layer receives: outputs of other places, or what an earlier edit made (the result of a
            `tap`, the tokens of an `insert_tokens` as they leave). For `parallel` they replace the place's own input;
            for every other verb they follow it.
        lifetime: for `insert_tokens`: "span" takes the tokens out where the span ends, "pooled" lets a mean over the
            sequence see them first.
        parameters: for `unfreeze`: which of the place's own parameters train.
        keep_original: for `unfreeze`: whether the frozen values are kept, so that detaching is exact.
    """

    place: Place
    verb: Verb
    layer: nn.Module | None = None
    reads: tuple[Place | Edit, ...] = ()
    lifetime: Lifetime = "span"
    parameters: tuple[str, ...] = ()
    keep_original: bool = True
