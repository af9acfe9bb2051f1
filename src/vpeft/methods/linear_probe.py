"""Linear probing: a frozen backbone and a linear head."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("linear_probe", category="baseline", family="baseline")
class LinearProbe(Method):
    """Nothing but the head is trained: logits = W z + b on the pooled feature z (B, D) of the frozen backbone.

    The head is the one that `tune(..., num_classes=...)` makes. The final norm stays frozen.
    """

    trains_head_only = True

    batch_norm: bool = False
    """a BatchNorm without scale and shift before the head, as the probes of MAE and the head of AdaptFormer have it"""

    @property
    def starts_as_identity(self) -> bool:
        return not self.batch_norm

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.batch_norm:
            yield backbone.outlet.after(nn.BatchNorm1d(backbone.facts.width, eps=1e-6, affine=False))
