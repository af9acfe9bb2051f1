"""The two-layer bottleneck that most adapters are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "gelu", "quick_gelu", "none"]


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
    """x -> scale * (W_up drop(f(W_down x + b_down)) + b_up), perhaps plus x.

    Args:
        width: D of x, (..., D).
        bottleneck: R.
        scale: factor of the whole branch, its bias included.
        dropout: after the activation.
        activation: f.
        residual: whether x itself is added, for use in series.

    W_down starts Kaiming-uniform (a = sqrt(5)), everything else at zero: the branch starts at zero and still learns,
    as W_up sees f(W_down x) != 0.
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
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.dropout = nn.Dropout(dropout)
        self.activation, self.scale, self.residual = activation, scale, residual
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.dropout(ACTIVATIONS[self.activation](self.down(x)))) * self.scale
        return x + out if self.residual else out
