"""A fused qkv whose weight timm uses without calling the module, with biases that it keeps beside it.

BEiT, EVA and Swin V2 compute `F.linear(x, self.qkv.weight, cat(q_bias, 0, v_bias))`: keys have no bias of their own,
and no hook on `qkv` ever fires. While an edit needs the projection, `BiasedLinear` stands in for it and a class of the
family for the attention; both compute the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .builders import Where, own_parameters, projection
from .places import Place, Projection
from .points import Point, StandIn

LETTERS = ("q", "k", "v")


class BiasedLinear(nn.Linear):
    """A linear whose bias comes with the call; the weight passes through edits, if there are any."""

    def forward(self, input: Tensor, bias: Tensor | None = None, apart: bool = False) -> Tensor:
        """(..., D) -> (..., E); with `apart`, the bias is added in a step of its own, as timm's option has it."""
        edits: Any = self.__dict__.get("vpeft_weight")
        weight = self.weight if edits is None else edits(self.weight)
        return F.linear(input, weight) + bias if apart and bias is not None else F.linear(input, weight, bias)


def fused_qkv(attention: Any, x: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, 3E) as timm computes it, through the module where that can take the bias."""
    if attention.q_bias is None:
        plain: Tensor = attention.qkv(x)
        return plain
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    if isinstance(attention.qkv, BiasedLinear):
        out: Tensor = attention.qkv(x, bias, attention.qkv_bias_separate)
        return out
    weight = attention.qkv.weight
    return F.linear(x, weight) + bias if attention.qkv_bias_separate else F.linear(x, weight, bias)


def fused_places(name: str, attention: Any, kind: type[nn.Module], where: Where) -> dict[str, Place]:
    """The places `qkv`, `q`, `k` and `v`; `kind` stands in for the attention where the weight is used functionally.

    The biases belong to `q` and `v`, under the name `bias`, as in models that store three projections.
    """
    module = attention.qkv
    third = int(module.weight.shape[0]) // 3
    parts: dict[str, Projection] = {"qkv": projection(f"{name}.qkv", module, where)}
    for offset, letter in enumerate(LETTERS):
        parts[letter] = projection(f"{name}.{letter}", module, where, (offset * third, (offset + 1) * third))
    if getattr(attention, "q_bias", None) is not None:
        needs = (StandIn(attention, kind), StandIn(module, BiasedLinear))
        for letter, part in parts.items():
            part.enter, part.exit = Point(module, "input", needs=needs), Point(module, "output", needs=needs)
            part.rewrites = {"reparametrize": ((module, BiasedLinear),)}
            part.biases = tuple((attention, f"{piece}_bias") for piece in LETTERS)
            if letter != "qkv" and isinstance(getattr(attention, f"{letter}_bias"), nn.Parameter):
                part.own = {"bias": (attention, f"{letter}_bias")}
                part.verbs |= {"unfreeze"}
    return dict(parts)


def other_parameters(attention: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The attention's direct parameters, without the biases that belong to `q` and `v`."""
    biases = {f"{letter}_bias" for letter in LETTERS}
    return {key: value for key, value in own_parameters(attention).items() if key not in biases}
