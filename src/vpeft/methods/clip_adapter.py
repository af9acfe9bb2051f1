"""CLIP-Adapter: a bottleneck on the feature that images and texts are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("clip_adapter", category="addition", family="adapter", paper="2110.04544", year=2024, venue="IJCV")
class CLIPAdapter(Method):
    """The feature is mixed with what a two-layer net makes of it: a ReLU(W2 ReLU(W1 f)) + (1 - a) f, without biases.

    f (B, E) is the feature of the tower before it is normalised, W1 (E / reduction, E), W2 (E, E / reduction). Put it
    on the image tower, as the released code does; on the text tower, where f is normalised first; or on "*" for both.
    No gradient passes through the backbone. It starts as nn.Linear, so step 0 is not the frozen model. On a backbone
    alone it stands before the head.
    """

    reduction: int = Field(default=4, gt=0)
    """E over the hidden width"""
    ratio: float = Field(default=0.2, ge=0.0, le=1.0)
    """a; the paper searches it for each data set: 0.2 for general classes, 0.6 for fine ones"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        texts = backbone.inputs.layout == "tokens"
        yield backbone.outlet.after(MixedFeature(backbone.outlet.width, self.reduction, self.ratio, texts))

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """One of its own for every tower."""
        for tower in towers.values():
            yield from self.edits(tower)


class MixedFeature(nn.Module):
    """f (..., E) -> a ReLU(W2 ReLU(W1 f)) + (1 - a) f.

    Args:
        width: E.
        reduction: E over the hidden width.
        ratio: a.
        normalise: divide f by its length first.
    """

    def __init__(self, width: int, reduction: int, ratio: float, normalise: bool) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.ratio, self.normalise = ratio, normalise

    def forward(self, feature: Tensor) -> Tensor:
        if self.normalise:
            feature = F.normalize(feature, dim=-1)
        return self.ratio * F.relu(self.up(F.relu(self.down(feature)))) + (1.0 - self.ratio) * feature
