"""LN-Tune: only the scales and shifts of the norms train."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register


@register(
    "ln_tune",
    category="partial",
    family="specification",
    paper="2304.01917",
    year=2024,
    venue="AAAI",
    aliases=("ln_tuning",),
)
class LNTune(Method):
    """The affine parameters of every norm train: y = gamma (x - mean) / std + beta, gamma and beta (D,).

    That is both norms of each block, the final norm, and those of patches, queries, keys or downsampling where the
    backbone has them. Weight decay would pull gamma to 0: leave it off (one-dimensional tensors are not decayed here).
    Hugging Face peft calls it ln_tuning, and it is found under that name too.
    """

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        found = [norm for norm in backbone.norms if norm.own]
        if not found:
            raise MissingPlace(
                f"LN-Tune trains the scales and shifts of norms, and {backbone.facts.architecture} has no norm with"
                " any. Biases alone are trained by BitFit."
            )
        for norm in found:
            yield norm.unfreeze()
