"""A perceptron on the pooled feature, for what one linear layer cannot separate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..backbones.features import Features
from ..errors import nearest
from ..head import BadHead, Head, pooled
from .linear import HEAD_STD

if TYPE_CHECKING:
    from ..batch import Batch

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MlpHead(Head):
    """f (B, D) -> `layers` times dropout(activation(linear)) of `hidden` channels -> a last linear layer, (B, K).

    The last layer starts as the linear head does: weights from a normal of deviation 0.02 cut at two, biases 0.

    Args:
        width: channels D of the pooled feature.
        outputs: K.
        hidden: channels of each hidden layer.
        layers: hidden layers.
        activation: gelu, relu, silu or tanh.
        dropout: share of the hidden channels that training drops.
    """

    kind = "mlp"

    def __init__(
        self,
        width: int,
        outputs: int,
        hidden: int = 512,
        layers: int = 1,
        activation: str = "gelu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 1:
            raise BadHead(f"The head 'mlp' needs hidden and layers of at least 1, not {hidden} and {layers}.")
        if activation not in ACTIVATIONS:
            raise BadHead(f"The head 'mlp' has no activation {activation!r}. {nearest(activation, ACTIVATIONS)}")
        steps: list[nn.Module] = []
        for step in range(layers):
            steps += [nn.Linear(width if step == 0 else hidden, hidden), ACTIVATIONS[activation](), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*steps)
        self.out = nn.Linear(hidden, outputs)
        nn.init.trunc_normal_(self.out.weight, std=HEAD_STD)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Features | Tensor, batch: Batch | None = None) -> Any:
        """(B, D) -> (B, K)."""
        return self.out(self.hidden(pooled(features)))
