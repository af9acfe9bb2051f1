"""Full fine-tuning: the reference that the others are measured against."""

from __future__ import annotations

from collections.abc import Iterator

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..errors import VpeftError
from ..method import KnownFailure, Method, register


@register("full_finetuning", category="baseline", family="baseline")
class FullFinetuning(Method):
    """Every tensor of the backbone trains: patch embedding, class token, positions, blocks, final norm; and the head.

    No copy of the originals is kept, so it cannot be detached: load the backbone again. On 1000 images its result is
    only as good as its learning rates (grids of VPT: 5e-5 to 5e-3); it is no upper bound.
    """

    restorable = False
    exceptions = {
        "detach_is_exact": KnownFailure(
            "the backbone's own weights train in place and no originals are kept, which detach says",
            VpeftError,
            "trained the backbone's own weights in place and kept no originals",
        )
    }

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield backbone.whole.unfreeze(keep_original=False)
