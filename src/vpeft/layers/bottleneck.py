"""The two-layer bottleneck of most adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu", "quick_gelu", "none"]
LayerNormAt = Literal["none", "in", "out"]
Start = Literal["identity", "trunc_normal", "normal", "small", "zero"]


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation that CLIP and several adapters use."""
    return x * (1.702 * x).sigmoid()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "none": lambda x: x,
}


class Bottleneck(nn.Module):
    """x -> scale * (W_up drop(f(W_down x + b_down)) + b_up), plus x if `residual`.

    Args:
        width: D of x, (..., D).
        bottleneck: R.
        scale: factor of the whole branch, including its bias.
        dropout: probability of the dropout after the activation.
        activation: f.
        residual: add x itself, for use in series.
        layer_norm: a trained LayerNorm on the input of W_down ("in") or on the scaled result ("out").
        learn_scale: train the scale, starting at this value.
        start: initialisation of the weights; biases start at zero.
            identity: W_down Kaiming-uniform (a = sqrt(5)), W_up zero. It can learn, because W_up sees f(W_down x) != 0.
            trunc_normal: both N(0, 0.02), truncated. normal: the same, not truncated.
            small: both N(0, 0.001), truncated at two deviations (Houlsby).
            zero: both zero; then only b_up can learn.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        activation: Activation = "relu",
        residual: bool = False,
        layer_norm: LayerNormAt = "none",
        learn_scale: bool = False,
        start: Start = "identity",
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.dropout = nn.Dropout(dropout)
        self.rectify = nn.ReLU()  # a module, so that a low-memory profile finds it
        self.activation, self.residual, self.layer_norm = activation, residual, layer_norm
        self.scale: float | nn.Parameter = nn.Parameter(torch.full((1,), scale)) if learn_scale else scale
        if layer_norm != "none":
            self.norm = nn.LayerNorm(width)
        _start(self.down.weight, self.up.weight, start)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if start == "zero":
            why = "both maps start at zero, so the gradient of either is zero for ever; b_up alone learns"
            self.dormant = dict.fromkeys(("down.weight", "down.bias", "up.weight"), why)

    def forward(self, x: Tensor) -> Tensor:
        came = self.norm(x) if self.layer_norm == "in" else x
        inner = (
            self.rectify(self.down(came))
            if self.activation == "relu"
            else ACTIVATIONS[self.activation](self.down(came))
        )
        out: Tensor = self.up(self.dropout(inner)) * self.scale
        if self.layer_norm == "out":
            out = self.norm(out)
        return x + out if self.residual else out


def _start(down: Tensor, up: Tensor, start: Start) -> None:
    if start == "identity":
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        nn.init.zeros_(up)
        return
    for weight in (down, up):
        if start == "trunc_normal":
            nn.init.trunc_normal_(weight, std=0.02)
        elif start == "normal":
            nn.init.normal_(weight, std=0.02)
        elif start == "small":
            nn.init.trunc_normal_(weight, std=1e-3, a=-2e-3, b=2e-3)
        else:
            nn.init.zeros_(weight)
