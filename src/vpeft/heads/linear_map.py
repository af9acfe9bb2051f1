"""The plainest head for maps: one linear layer on each cell of the last map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ..backbones.features import Features
from ..backbones.last_place import last_map
from ..backbones.points import MissingPlace
from ..head import Head

if TYPE_CHECKING:
    from ..backbones.backbone import Backbone
    from ..batch import Batch

# The start of the last convolution of a decoder in mmsegmentation, whose linear heads DINOv2 and BEiT evaluate with.
CONV_STD = 0.01


class LinearMapHead(Head):
    """y = conv 1x1 of dropout(map): (B, D, h, w) -> (B, K, h, w), at the resolution of the place that it reads.

    Source: the linear segmentation head of DINOv2 (Oquab et al., arXiv 2304.07193), which has a BatchNorm before the
    convolution; `batch_norm` adds it.

    Args:
        width: channels D of the map.
        outputs: K.
        place: where the map is read.
        dropout: share of the channels, each as a whole map, that training drops.
        batch_norm: whether the map is standardised over the batch first.
    """

    kind = "linear_map"

    def __init__(
        self, width: int, outputs: int, place: str = "norm", dropout: float = 0.1, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.reads = (place,)
        self.norm = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(width, outputs, kernel_size=1)
        nn.init.normal_(self.conv.weight, std=CONV_STD)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    @classmethod
    def on(cls, backbone: Backbone, width: int, outputs: int, /, **options: Any) -> Head:
        """The head on the last map of a backbone, or at the option `place`."""
        rest = dict(options)
        place = last_map(backbone, rest.pop("place", None))
        return cls.with_options(rest, width=place.width, outputs=outputs, place=place.name)

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """The map (B, D, h, w) -> (B, K, h, w)."""
        found = features.map(self.reads[0])
        if found.dim() != 4:
            raise MissingPlace(f"{self.reads[0]} has a time axis here, and the head 'linear_map' reads single images.")
        return self.conv(self.dropout(self.norm(found)))
