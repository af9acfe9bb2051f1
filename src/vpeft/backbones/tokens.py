"""How inserted tokens travel through a span of the backbone."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Memory(Protocol):
    """Keeps a value for an owner within one forward pass; `injection` has it."""

    def recall(self, owner: Any) -> Any: ...

    def keep(self, owner: Any, value: Any) -> None: ...


class TokenCarrier:
    """How extra tokens travel through a span. This one is for plain sequences (B, N, D): they join after the prefix.

    Attributes:
        memory: where what travels beside the sequence is kept, so that passes at the same time do not mix; None keeps
            it here.
        plain: what is kept here.
    """

    memory: Memory | None = None
    plain: Any = None

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix

    def enter(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(B, P + N, D) and (B, n, D) -> (B, P + n + N, D)."""
        return torch.cat([hidden[:, : self.prefix], tokens, hidden[:, self.prefix :]], dim=1)

    def reset(self) -> None:
        """Forget what an interrupted forward pass left behind."""

    def state(self) -> dict[str, Tensor | None]:
        """What travels beside the sequence now."""
        return {}

    def put(self, state: dict[str, Tensor | None]) -> None:
        """Let what `state` gave travel beside the sequence."""

    def carried(self, hidden: Tensor, count: int) -> Tensor:
        """The tokens that travel with the sequence, (B, P + n + N, D) -> (B, n, D)."""
        return hidden[:, self.prefix : self.prefix + count]

    def leave(self, hidden: Tensor, count: int, pooled: bool) -> Tensor:
        """(B, P + n + N, D) -> (B, P + N, D); with `pooled` a later mean over the N tokens equals one over n + N."""
        start, stop = self.prefix, self.prefix + count
        kept = hidden[:, stop:]
        if pooled:
            kept = spread_mean(kept, hidden[:, start:stop])
        return torch.cat([hidden[:, :start], kept], dim=1)


def spread_mean(kept: Tensor, leaving: Tensor) -> Tensor:
    """Change `kept` so that its mean over the tokens is the mean over `kept` and `leaving` together.

    kept: (B, ..., D) with N tokens in between, leaving: (B, n, D). Exact for any linear pooling by average.
    """
    between = kept.shape[1:-1].numel()
    total = between + leaving.shape[1]
    share = leaving.sum(dim=1) / total
    return kept * (between / total) + share.reshape(share.shape[0], *([1] * (kept.dim() - 2)), share.shape[-1])
