"""Tokens of images that are drawn at random as they pass a place."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


class SampledTokens:
    """Draws `count` tokens, uniformly and none twice, of all batches that it is given.

    Each token has a random number, and those with the lowest are kept, so that no batch has to be stored.

    Args:
        count: how many.
        sampling: "random" draws from the tokens; the others from each image's tokens pooled over count - 1 windows
            and the remainder.

    Attributes:
        kept: (count, D), or all tokens where there are fewer; None while nothing was given.
    """

    def __init__(self, count: int, sampling: Literal["random", "mean_pooling", "max_pooling"] = "random") -> None:
        self.count, self.sampling = count, sampling
        self.kept: Tensor | None = None
        self._keys = torch.empty(0)

    def add(self, x: Tensor) -> None:
        """Draw anew among what is kept and one batch x (B, N, D)."""
        rows = (x if self.sampling == "random" else self._windows(x)).flatten(0, 1)
        keys = torch.cat([self._keys, torch.rand(len(rows))])
        rows = rows if self.kept is None else torch.cat([self.kept, rows])
        lowest = keys.topk(min(self.count, len(keys)), largest=False).indices
        self.kept, self._keys = rows[lowest.to(rows.device)].clone(), keys[lowest]

    def _windows(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, windows, D)."""
        size = max(x.shape[1] // max(self.count - 1, 1), 1)
        whole = min(self.count - 1, x.shape[1] // size)
        rest = x.shape[1] % size
        parts = [x[:, i * size : (i + 1) * size] for i in range(whole)]
        parts.append(x[:, -rest:] if rest else x)
        pooled = [part.amax(1) if self.sampling == "max_pooling" else part.mean(1) for part in parts]
        return torch.stack(pooled, dim=1)
