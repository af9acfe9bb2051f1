"""One U-Tuner: a small trained operation beside a frozen one that reads the same input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.bottleneck import Bottleneck
from ..layers.scale_shift import Scale
from ..method import Method, register

Form = Literal["adapter", "prefix", "prompt", "scale"]


@register("u_tuner", category="unified", family="unified", paper="2303.00690", year=2023, venue="arXiv")
class UTuner(Method):
    """x' = OP(x) + tuner(x) for one kind of OP in every block; `u_tuning` attaches several of these together.

    adapter: W_up ReLU(W_down x + b_down) + b_up, W_up and b_up from zero.
    prefix: g softmax(x K^T / sqrt(D)) V, K and V (n, D) learned, the gate g from zero: the parallel form of prefixes.
    prompt: the same with V = K: the parallel form of prompts.
    scale: s * x for each channel, s (D,) from zero.

    No code was published. In the paper's derivation the attention on K and V has the frozen query and the share of the
    softmax that falls on them as its gate (exactly that is `prefix_tuning`); here x asks itself and g is learned.
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"op": "mlp"},)

    op: Literal["attn", "mlp", "block"] = "attn"
    """the frozen operation: attention, MLP or the whole block"""
    form: Form = "adapter"
    """what stands beside it"""
    normed: bool = True
    """for attention and MLP: x behind their norm; False: x before it, added behind LayerScale and drop path"""
    bottleneck: int = Field(default=8, gt=0)
    """rows of W_down"""
    length: int = Field(default=10, gt=0)
    """n"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.op != "block":
            backbone.require(self.op)
        for block in backbone.blocks:
            if self.op == "block":
                yield block.after(Beside(self._tuner(block.dim)), reads=(block.input,))
            else:
                place = block.parts[self.op if self.normed else f"{self.op}_branch"]
                yield place.parallel(self._tuner(block.dim))

    def _tuner(self, width: int) -> nn.Module:
        if self.form == "adapter":
            return Bottleneck(width, self.bottleneck)
        if self.form == "scale":
            return Scale(width, start=0.0)
        return GatedLookup(width, self.length, tied=self.form == "prompt")


class Beside(nn.Module):
    """(h, x) -> h + tuner(x)."""

    def __init__(self, tuner: nn.Module) -> None:
        super().__init__()
        self.tuner = tuner

    def forward(self, hidden: Tensor, came: Tensor) -> Tensor:
        return hidden + torch.as_tensor(self.tuner(came))


class GatedLookup(nn.Module):
    """x (..., D) -> g softmax(x K^T / sqrt(D)) V."""

    def __init__(self, width: int, length: int, tied: bool) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(length, width) * 0.02)
        self.values = None if tied else nn.Parameter(torch.randn(length, width) * 0.02)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ self.keys.mT / math.sqrt(x.shape[-1])).softmax(dim=-1)
        return self.gate * (weights @ (self.keys if self.values is None else self.values))
