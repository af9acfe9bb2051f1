"""Features of images and of texts side by side, for losses and scores that compare all with all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import functional

from ..backbones.features import Features
from ..head import Head

if TYPE_CHECKING:
    from ..batch import Batch


class ImageTextHead(Head):
    """Gives "image" (B, E) and "text" (T, E), each row of length 1, and "scale" and "bias" of their similarity.

    The similarity of an image and a text is scale * cosine + bias; the bias is 0 where the model has none.
    """

    kind = "image_text"
    reads = ("image.outlet", "text.outlet")

    def __init__(self) -> None:
        super().__init__()

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """See the class."""
        scale = features["scale"]
        return {
            "image": functional.normalize(features["image.outlet"], dim=-1),
            "text": functional.normalize(features["text.outlet"], dim=-1),
            "scale": scale,
            "bias": features["bias"] if "bias" in set(features) else scale.new_zeros(()),
        }
