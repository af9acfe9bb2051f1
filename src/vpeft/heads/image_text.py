"""Features of images and of texts side by side, for losses and scores that compare all with all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from torch.nn import functional

from ..backbones.features import Features
from ..head import Head
from .class_names import text_spec

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch


class ImageTextHead(Head):
    """Gives "image" (B, E) and "text" (T, E), each row of length 1, and "scale" and "bias" of their similarity.

    The similarity of an image and a text is scale * cosine + bias; the bias is 0 where the model has none.
    """

    kind = "image_text"
    reads = ("image.outlet", "text.outlet")

    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Self:
        """The head for an image-text model; the width and the number of outputs are not needed.

        Raises:
            MissingPlace: the model has no two towers that share a space.
            BadHead: an option does not exist.
        """
        text_spec(backbone)
        return cls.with_options(options)

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """See the class."""
        scale = features["scale"]
        return {
            "image": functional.normalize(features["image.outlet"], dim=-1),
            "text": functional.normalize(features["text.outlet"], dim=-1),
            "scale": scale,
            "bias": features["bias"] if "bias" in set(features) else scale.new_zeros(()),
        }
