"""PATT: prefix-tuning's parallel form, a small network beside keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register


@register("patt", category="addition", family="prefix", paper="2210.00788", year=2022, venue="arXiv")
class PATT(Method):
    """What attention reads, seen through a tanh bottleneck, joins keys and values (the V-PETL paper's PATT).

    [dk, dv] = W_2 tanh(W_1 u + b_1) + b_2, k + s dk, v + s dv, u (N, D) the normed tokens, W_1 (m, D), W_2 (2D, m);
    the frozen query, softmax, bias and mask follow. In windows u are the window's tokens after shift and padding, so
    that padding zeros get W_2 tanh(b_1) + b_2 as the authors' code gives them.

    Both maps start as nn.Linear, so step 0 is not the frozen model. The bias of dk changes nothing: softmax does not
    see it. Mode "qk" is as the equation says; the released file forgets softmax and position bias there.
    """

    hidden: int = Field(default=128, gt=0)
    """m; the scripts use 128, the code's default is 64"""
    scale: float = 0.8
    """s; the scripts use 0.8, the code's default is 0.2"""
    mode: Literal["kv", "qv", "qk", "qkv"] = "kv"
    """which of q, k and v change"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.q", "attn.k", "attn.v")
        for block in backbone.blocks:
            changed = [block.projection(letter) for letter in self.mode]
            seen = changed[0].input.tap(Squeeze(changed[0].width_in, self.hidden))
            yield seen
            for letter, place in zip(self.mode, changed, strict=True):
                layer = Expand(self.hidden, place.width, self.scale)
                if letter == "k":
                    layer.dormant = {"bias": "the softmax over keys does not see what is the same for every key"}
                yield place.parallel(layer, reads=(seen,))


class Squeeze(nn.Linear):
    """x -> tanh(W x + b)."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


class Expand(nn.Linear):
    """x -> s (W x + b)."""

    dormant: dict[str, str]

    def __init__(self, width_in: int, width: int, scale: float) -> None:
        super().__init__(width_in, width)
        self.scale, self.dormant = scale, {}

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale
