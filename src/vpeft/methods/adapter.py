"""Adapter: a residual bottleneck in series."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Activation, Bottleneck, Start
from ..method import Method, register


class Setting(NamedTuple):
    """What the name of a variant stands for; `divisor` gives R = D / divisor, `width` a fixed R."""

    sites: tuple[str, ...]
    activation: Activation
    width: int
    divisor: int
    start: Start
    dropout: float = 0.0


VARIANTS = {
    "houlsby": Setting(("attn", "mlp"), "gelu", 64, 0, "small"),
    "pfeiffer": Setting(("stream",), "relu", 0, 16, "normal"),
    "noah": Setting(("mlp_branch",), "quick_gelu", 8, 0, "trunc_normal", 0.1),
    "vpetl": Setting(("mlp",), "gelu", 0, 96, "trunc_normal"),
    "vpt": Setting(("mlp",), "gelu", 0, 8, "zero"),
}


@register("adapter", category="addition", family="adapter", paper="1902.00751", year=2019, venue="ICML")
class Adapter(Method):
    """A bottleneck with its own skip, in series on what a sub-layer gives.

    A(x) = x + W_up drop(f(W_down x + b_down)) + b_up, x (..., D), W_down (R, D), W_up (D, R). `variant` says where:

    houlsby (the paper): on attention and MLP, before the residual add; f = GELU, R = 64.
    pfeiffer (AdapterFusion, as adapter-hub runs it on a ViT): on the stream after the MLP was added; ReLU, R = D / 16.
    noah (the code behind the usual VTAB-1k figure): on the MLP branch, after drop path; QuickGELU, R = 8, dropout 0.1.
    vpetl (V-PETL Bench): on the MLP, before drop path; GELU, R = D / 96. With a LayerScale it is before that one too.
    vpt (FGVC figure; what vision papers call Pfeiffer): as vpetl, R = D / 8.

    Departure: it starts as the identity (W_up = 0). `start="published"` gives what each code really starts from: both
    maps N(0, 0.001) (houlsby), N(0, 0.02) (pfeiffer, noah, vpetl), or zero (vpt: then only b_up ever learns). The
    paper's code also trains the norms: attach LNTune beside it.
    """

    variant: Literal["houlsby", "pfeiffer", "noah", "vpetl", "vpt"] = "noah"
    """where, f, R and dropout"""
    bottleneck: int | None = Field(default=None, gt=0)
    """R; None is the variant's"""
    activation: Activation | None = None
    """f; None is the variant's"""
    dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """after f; None is the variant's"""
    start: Literal["identity", "published"] = "identity"
    """first values of the weights"""
    last: int | None = Field(default=None, gt=0)
    """only so many blocks, counted from the end; None is all"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity" or self.variant == "vpt"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        setting = VARIANTS[self.variant]
        backbone.require(*(site for site in setting.sites if site != "stream"))
        for block in backbone.blocks[-self.last if self.last else 0 :]:
            for site in setting.sites:
                place = block if site == "stream" else block.parts[site]
                yield place.after(self._layer(block.dim, setting))

    def _layer(self, width: int, setting: Setting) -> Bottleneck:
        return Bottleneck(
            width,
            self.bottleneck or setting.width or max(1, width // setting.divisor),
            dropout=setting.dropout if self.dropout is None else self.dropout,
            activation=self.activation or setting.activation,
            residual=True,
            start="identity" if self.start == "identity" else setting.start,
        )
