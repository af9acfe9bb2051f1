"""The digest of the frozen weights that an adapter belongs to."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..backbones import digest
from ..backbones.backbone import Backbone

if TYPE_CHECKING:
    from .tuned_model import TunedModel


def weights_digest(description: Backbone, tuned: TunedModel | None = None) -> str:
    """sha256 over names, types, shapes and bytes of the backbone's frozen tensors, its classifier left out.

    Where an adapter trains the backbone's own weights in place, it is the digest from before that adapter came.
    """
    if tuned is not None and tuned.origin is not None:
        return tuned.origin
    with nullcontext() if tuned is None else tuned.disable():  # no stand-ins and no merge are in the modules then
        return digest.weights_digest(description)
