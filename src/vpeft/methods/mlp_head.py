"""MLP head: hidden layers between the frozen backbone and the linear head."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


def hidden_layer(width: int, dropout: float) -> nn.Sequential:
    """h -> Dropout(BN(ReLU(W h + b))), (B, D) -> (B, D)."""
    linear = nn.Linear(width, width)
    nn.init.kaiming_normal_(linear.weight, a=0, mode="fan_out")
    return nn.Sequential(linear, nn.ReLU(), nn.BatchNorm1d(width), nn.Dropout(dropout))


@register("mlp_head", category="baseline", family="baseline", paper="2203.12119", year=2022, venue="ECCV")
class MlpHead(Method):
    """Hidden layers of the feature's own width D between the frozen backbone and the linear head.

    h_0 = z (B, D), h_i = Dropout(BN(ReLU(W_i h_{i-1} + b_i))) for i = 1 ... k, logits = W_o h_k + b_o. The norm follows
    the activation, as in the code of VPT. Its running statistics are saved with the adapter.

    The hidden layers are part of the head: papers count 0 parameters of the backbone. W_o is the head that
    `tune(..., num_classes=...)` makes; VPT starts its bias at -4.595, ours at 0.
    """

    layers: int = Field(default=3, gt=0, le=100)
    """k; VPT tries 2, 3, 5, 7 and 9"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after each norm"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for _ in range(self.layers):
            yield backbone.outlet.after(hidden_layer(backbone.facts.width, self.dropout))
