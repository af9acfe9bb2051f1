"""SSF: a scale and a shift after every operation."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.edits import Edit
from ..backbones.places import Norm, Projection
from ..layers.scale_shift import ScaleShift
from ..method import Method, register


@register("ssf", category="partial", family="reparameter", paper="2210.08823", year=2022, venue="NeurIPS")
class SSF(Method):
    """After every linear, convolution and norm an affine map of each channel: y = gamma * op(x) + beta, (C,) each.

    The operations are the patch projection and its norm; in each block the norms, qkv (fused: 3 D channels), proj,
    fc1 (before the GELU) and fc2; in a ConvNeXt also the depthwise convolution; the final norm. gamma starts at
    N(1, 0.02) and beta at N(0, 0.02), so step 0 is not the frozen model. It folds into the operations' weights.

    Departure of the published code from its intention: on Swin and ConvNeXt the downsampling between stages has no
    pair as released (a comparison of a list with a string fails there); `patch_merging` puts them where they belong.
    """

    patch_merging: bool = False
    """also between stages: after the norm, and after the reduction where that is a convolution"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        between = {
            id(part): isinstance(part, Norm) or (isinstance(part, Projection) and part.is_conv)
            for stage in backbone.stages
            for part in stage.parts.values()
            if not isinstance(part, Block)
        }
        for place in backbone.places():
            operation = isinstance(place, Norm) or (isinstance(place, Projection) and place.rows is None)
            if operation and (id(place) not in between or (self.patch_merging and between[id(place)])):
                yield place.after(ScaleShift(place.width))
