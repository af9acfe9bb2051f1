"""VL-Adapter: one set of bottlenecks in the language tower, shared by all tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register
from .cocoop import image_and_text


@register("vl_adapter", category="addition", family="adapter", paper="2112.06825", year=2022, venue="CVPR")
class VLAdapter(Method):
    """A bottleneck in series on attention and MLP of every block, before the residual add: the paper's single adapter.

    A(x) = x + W_up GELU(W_down x + b_down) + b_up, x (..., D), W_down (R, D), R = D / reduction, GELU in the form with
    tanh. The paper puts it in the language model and leaves the image tower frozen: on "*" it is on the text tower
    alone; it can be named for any tower. With several heads all tasks share it. W_up starts at zero here;
    start="published" starts both maps as nn.Linear, which is not the frozen model.

    Left out: sharing one of the two maps between the adapters of several tasks, and PHM layers (see Compacter).
    """

    reduction: int = Field(default=8, gt=0)
    """D over R; 8 in the authors' runs"""
    norms: bool = False
    """whether the norms of the blocks and the last one train too"""
    start: Literal["identity", "published"] = "identity"
    """first values of W_up: zero, or as nn.Linear"""

    @property
    def starts_as_identity(self) -> bool:
        return self.start == "identity"

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn", "mlp")
        for block in backbone.blocks:
            for site in (block.attn, block.mlp):
                layer = LanguageBottleneck(block.dim, max(1, block.dim // self.reduction))
                if self.start == "identity":
                    nn.init.zeros_(layer.up.weight)
                    nn.init.zeros_(layer.up.bias)
                yield site.after(layer)
        if self.norms:
            for norm in backbone.norms:
                yield norm.unfreeze()

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """On the text tower; the image tower stays frozen."""
        yield from self.edits(image_and_text(towers, type(self).__name__)[1])


class LanguageBottleneck(nn.Module):
    """x -> x + W_up GELU(W_down x + b_down) + b_up, x (..., D)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.up(F.gelu(self.down(x), approximate="tanh"))
        return x + change
