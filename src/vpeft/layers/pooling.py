"""Pool the tokens of a side network in the same way as the backbone."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Pooling = Literal["token", "mean"]


def side_pooling(backbone_pooling: str, prefix: int) -> Pooling:
    """Return "token" if the backbone reads its class token, "mean" for every other pooling."""
    return "token" if backbone_pooling == "token" and prefix > 0 else "mean"


def pool(tokens: Tensor, how: Pooling, prefix: int = 0) -> Tensor:
    """(B, P + N, D) or (B, H, W, D) -> (B, D): the class token, or the mean without the P prefix tokens."""
    if tokens.dim() == 4:
        return tokens.mean(dim=(1, 2))
    return tokens[:, 0] if how == "token" else tokens[:, prefix:].mean(dim=1)
