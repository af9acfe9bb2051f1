"""Layers of elastic width: a shared table says how many rows or columns of each tensor are used."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.tokens import TokenCarrier
from .bottleneck import quick_gelu

KINDS = ("tokens", "rank", "bottleneck")
Genes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # widths of each kind for each block; 0 for none


class Widths:
    """The widths in use: `rest` by default, `drawn` in training, `tried` in a search."""

    def __init__(self, rest: Genes) -> None:
        self.rest = rest
        self.drawn: Genes | None = None
        self.tried: Genes | None = None

    def of(self, kind: str, training: bool) -> tuple[int, ...]:
        """The widths of one kind, block by block."""
        drawn = self.drawn if training else None
        return (self.tried or drawn or self.rest)[KINDS.index(kind)]


def drawn_widths(choices: Sequence[int], depths: Sequence[int], blocks: int, random: Random) -> tuple[int, ...]:
    """Draw widths of one kind: a depth from `depths`, a width from `choices` for each block up to it, then zeros."""
    depth = min(random.choice(depths), blocks)
    return (*(random.choice(choices) for _ in range(depth)), *(0 for _ in range(blocks - depth)))


def widths_in(adapter: nn.Module) -> Widths:
    """Return the table that the elastic layers inside `adapter` share; LookupError if there is none."""
    for module in adapter.modules():
        found = getattr(module, "widths", None)
        if isinstance(found, Widths):
            return found
    raise LookupError("There is no elastic layer here.")


class ElasticPrompts(nn.Module):
    """Prompts of one block, for `wrap`.

    They replace the prompts of the block before. If the block has none, those of the block before stay in the sequence.

    Args:
        width: rows of the tensor, 0 for none.
        channels: D.
        index: of the block.
        widths: the shared table.
        carrier: inserts tokens into a sequence.
        bound: the rows start uniform in (-bound, bound).
        dropout: on the tokens.
    """

    def __init__(
        self, width: int, channels: int, index: int, widths: Widths, carrier: TokenCarrier, bound: float, dropout: float
    ) -> None:
        super().__init__()
        self.index, self.widths, self.carrier = index, widths, carrier
        self.tokens = nn.Parameter(torch.empty(width, channels).uniform_(-bound, bound)) if width else None
        self.dropout = nn.Dropout(dropout)

    def enter(self, hidden: Tensor) -> Tensor:
        """(B, P + N, D) -> (B, P + n + N, D)."""
        count = self.widths.of("tokens", self.training)[self.index]
        if count == 0 or self.tokens is None:
            return hidden
        return self.carrier.enter(hidden, self.dropout(self.tokens[:count].expand(hidden.shape[0], -1, -1)))

    def leave(self, hidden: Tensor) -> Tensor:
        """Remove the inserted tokens, unless the next block uses them."""
        counts = self.widths.of("tokens", self.training)
        following = counts[self.index + 1 : self.index + 2]
        travelling = next((count for count in counts[self.index :: -1] if count), 0)
        if travelling == 0 or following == (0,):
            return hidden
        return self.carrier.leave(hidden, travelling, False)


class ElasticLowRank(nn.Module):
    """x -> B[:, :d] A[:d] drop(x); A (W, D_in), B (D_out, W)."""

    def __init__(
        self, width_in: int, width: int, rank: int, index: int, widths: Widths, dropout: float, zero: bool
    ) -> None:
        super().__init__()
        self.index, self.widths, self.dropout = index, widths, nn.Dropout(dropout)
        self.A, self.B = nn.Parameter(torch.empty(rank, width_in)), nn.Parameter(torch.zeros(width, rank))
        for factor in (self.A,) if zero else (self.A, self.B):
            nn.init.trunc_normal_(factor, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        d = self.widths.of("rank", self.training)[self.index]
        return F.linear(F.linear(self.dropout(x), self.A[:d]), self.B[:, :d])

    def weight_delta(self) -> tuple[Tensor, None]:
        """Return the update of the weight (D_out, D_in)."""
        d = self.widths.of("rank", False)[self.index]
        return self.B[:, :d] @ self.A[:d], None


class ElasticBottleneck(nn.Module):
    """h -> h + W_up[:, :d] drop(q(W_down[:d] h + b_down[:d])) + b_up, q = QuickGELU; h if d = 0."""

    def __init__(self, channels: int, bottleneck: int, index: int, widths: Widths, dropout: float, zero: bool) -> None:
        super().__init__()
        self.index, self.widths, self.dropout = index, widths, nn.Dropout(dropout)
        self.down, self.up = nn.Linear(channels, bottleneck), nn.Linear(bottleneck, channels)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if zero:
            nn.init.zeros_(self.up.weight)

    def forward(self, h: Tensor) -> Tensor:
        d = self.widths.of("bottleneck", self.training)[self.index]
        if d == 0:
            return h
        hidden = quick_gelu(F.linear(h, self.down.weight[:d], self.down.bias[:d]))
        return h + F.linear(self.dropout(hidden), self.up.weight[:, :d], self.up.bias)
