"""The scaled parallel adapter: a bottleneck beside the MLP or the attention that reads what they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck, LayerNormAt
from ..method import Method, register


@register("adapter_parallel", category="addition", family="adapter", paper="2110.04366", year=2022, venue="ICLR")
class ParallelAdapter(Method):
    """y = f(x) + s (W_up drop(ReLU(W_down x + b_down)) + b_up), f a frozen sub-layer and x its input; W_down (R, D).

    The authors' code stands in language models, where f reads the normed hidden state. On a vision transformer that is
    input="post_norm", x = LN(h), and y is scaled and dropped with the branch. input="pre_norm" reads h itself, outside
    LayerScale and drop path: with s = 0.1 that is `adaptformer`. W_up starts at zero: step 0 is the frozen model.
    """

    variants = ({"sites": ("mlp",)},)

    sites: tuple[Literal["attn", "mlp"], ...] = ("mlp",)
    """the sub-layers; the MLP alone is the paper's best"""
    bottleneck: int = Field(default=8, gt=0)
    """R; the paper has 30 to 512"""
    scale: float = 4.0
    """s; the paper's value for summarisation. It multiplies b_up too"""
    learn_scale: bool = False
    """train s, from one as in the code"""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """behind the ReLU"""
    input: Literal["post_norm", "pre_norm"] = "post_norm"
    """whether x is what the sub-layer reads, or the residual stream"""
    layer_norm: LayerNormAt = "none"
    """a trained LayerNorm on x or on the result"""
    start: Literal["lora", "bert"] = "lora"
    """W_down Kaiming-uniform and W_up zero; or both N(0, 0.02)"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "lora"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require(*self.sites)
        for block in backbone.blocks:
            for site in self.sites:
                layer = Bottleneck(
                    block.dim,
                    self.bottleneck,
                    scale=1.0 if self.learn_scale else self.scale,
                    dropout=self.dropout,
                    layer_norm=self.layer_norm,
                    learn_scale=self.learn_scale,
                    start="identity" if self.start == "lora" else "normal",
                )
                yield block.parts[site if self.input == "post_norm" else f"{site}_branch"].parallel(layer)
