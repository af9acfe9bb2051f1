"""Learnable keys and values before those of an attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Start = Literal["vpt", "uniform", "lae"]


class Prefix(nn.Module):
    """k, v (B, h, N, d) -> [K_p; k], [V_p; v] with n more rows; q does not change.

    Args:
        heads, head_width: h and d; D = h d.
        count: n.
        bound: bound of the uniform start.
        start: "vpt" in (-bound, bound), "uniform" in (-1, 1), "lae" in (0, 0.01) with two learned factors, of the
            keys and of the values, that start at 1.
        compensate: after the softmax, divide the prefix columns of each row by their sum, or by 1e-12 where that is
            smaller: a frozen key may take the whole softmax (LAE).
    """

    def __init__(
        self, heads: int, head_width: int, count: int, *, bound: float = 1.0, start: Start = "vpt", compensate: bool
    ) -> None:
        super().__init__()
        self.heads, self.count = heads, count
        low, high = {"vpt": (-bound, bound), "uniform": (-1.0, 1.0), "lae": (0.0, 0.01)}[start]
        self._make(heads * head_width, low, high)
        self.key_factor = nn.Parameter(torch.ones(1)) if start == "lae" else None
        self.value_factor = nn.Parameter(torch.ones(1)) if start == "lae" else None
        self.behind = 0  # keys behind ours in this forward pass
        if compensate:
            self.weights = self._compensate

    def _make(self, width: int, low: float, high: float) -> None:
        self.keys = nn.Parameter(torch.empty(self.count, width).uniform_(low, high))
        self.values = nn.Parameter(torch.empty(self.count, width).uniform_(low, high))

    def rows(self) -> tuple[Tensor, Tensor]:
        """The keys and values that join, each (n, D)."""
        if self.key_factor is None or self.value_factor is None:
            return self.keys, self.values
        return self.keys * self.key_factor, self.values * self.value_factor

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.behind = k.shape[2]
        keys, values = (self._split(rows, k) for rows in self.rows())
        return q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)

    def _split(self, rows: Tensor, like: Tensor) -> Tensor:
        """(n, D) -> (B, h, n, d)."""
        split = rows.reshape(self.count, self.heads, -1).transpose(0, 1)
        return split.to(like.dtype).expand(like.shape[0], -1, -1, -1)

    def _compensate(self, weights: Tensor) -> Tensor:
        """Each row's prefix columns sum to one, where they are not all zero; the other columns keep their values."""
        start = weights.shape[-1] - self.behind - self.count
        before, ours, after = torch.split(weights, [start, self.count, self.behind], dim=-1)
        return torch.cat([before, ours / ours.sum(dim=-1, keepdim=True).clamp(min=1e-12), after], dim=-1)


class MadePrefix(Prefix):
    """A prefix that a small network computes in training: [K_p, V_p] = W_2 tanh(W_1 T + b_1) + b_2, T (n, D).

    Args:
        hidden: m, the rows of W_1.
    """

    def __init__(self, heads: int, head_width: int, count: int, hidden: int, *, compensate: bool) -> None:
        super().__init__(heads, head_width, count, compensate=compensate)
        width = heads * head_width
        self.table = nn.Parameter(torch.randn(count, width))
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, 2 * width)

    def _make(self, width: int, low: float, high: float) -> None:
        """Keys and values are made, not stored."""

    def rows(self) -> tuple[Tensor, Tensor]:
        keys, values = self.second(torch.tanh(self.first(self.table))).chunk(2, dim=-1)
        return keys, values
