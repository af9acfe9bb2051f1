"""AdaptFormer: a bottleneck beside each MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Activation, Bottleneck, LayerNormAt
from ..method import Method, register


@register("adaptformer", category="addition", family="adapter", paper="2205.13535", year=2022, venue="NeurIPS")
class AdaptFormer(Method):
    """A scaled bottleneck in parallel to the MLP branch of every block.

    out = x + MLP(LN(x)) + s (W_up drop(ReLU(W_down x + b_down)) + b_up), x (B, N, D) before the norm, W_down (R, D),
    W_up (D, R). The branch is added after LayerScale and drop path and is never dropped by them.

    Departure from the paper's equation, with its code: x enters W_down un-normed (its authors confirm the code).
    V-PETL Bench runs it as scale=1, layer_norm="in", start="trunc_normal"; Mona's baseline on Swin with
    activation="gelu", start="trunc_normal". The authors' head has a norm: attach LinearProbe(batch_norm=True) too.
    """

    bottleneck: int = Field(default=64, gt=0)
    """R; the VTAB-1k tables use 8"""
    scale: float = 0.1
    """s, multiplies the bias too"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """after the activation"""
    activation: Activation = "relu"
    """between the two maps"""
    layer_norm: LayerNormAt = "none"
    """a trained LayerNorm on what enters W_down, or on the scaled result"""
    learn_scale: bool = False
    """train s, from the value of `scale` (the code: from 1)"""
    sequential: bool = False
    """x + A(MLP(LN(x))) with A(h) = h + s (...), in series behind the branch and its drop path, as the code's option"""
    start: Literal["identity", "trunc_normal"] = "identity"
    """W_up zero, or both maps N(0, 0.02)"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            layer = Bottleneck(
                block.dim,
                self.bottleneck,
                scale=self.scale,
                dropout=self.dropout,
                activation=self.activation,
                residual=self.sequential,
                layer_norm=self.layer_norm,
                learn_scale=self.learn_scale,
                start=self.start,
            )
            yield block.mlp_branch.after(layer) if self.sequential else block.mlp_branch.parallel(layer)
