"""A narrow transformer in parallel to a frozen one; it reads the frozen blocks over ladders."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pooling import pool
from .side_block import SideBlock

Grid = tuple[int, int] | None


class Ladder(nn.Module):
    """(frozen feature (B, D), b_0, b_1, ...) -> y (B, D); b_0 is the embedding, b_i what block i gives.

    Args:
        widths: channels of b_0, b_1, ...
        grids: their grids for inputs of the backbone's own size, by which the side shrinks where they do.
        heads: of each side block, at most.
        reduction: the side has D / reduction channels beside D.
        temperature: of the gates' sigmoid.
        gated: whether learned gates weigh side against ladder; otherwise they are added.
        gate_start: first value of the gates.
        bias: of the ladders.
        gate_after: mix behind the side block instead of before it.
        merge_last: blend the frozen feature in at the end.
        chosen_by_data: remember that the start was taken from data, which must not happen twice.
        width: channels of the frozen feature.
        how: how the side's tokens become one feature.
        prefix: tokens in front that a mean leaves out.
    """

    chosen: Tensor | None
    gives_sequence = True

    def __init__(
        self,
        widths: Sequence[int],
        grids: Sequence[Grid],
        heads: Sequence[int],
        *,
        reduction: int,
        temperature: float,
        gated: bool,
        gate_start: float,
        bias: bool,
        gate_after: bool,
        merge_last: bool,
        chosen_by_data: bool,
        width: int,
        how: Literal["token", "mean"],
        prefix: int,
    ) -> None:
        super().__init__()
        self.how, self.prefix, self.temperature = how, prefix, temperature
        self.learnable, self.gate_after = gated, gate_after
        narrow = [max(1, wide // reduction) for wide in widths]
        self.ladders = nn.ModuleList(nn.Linear(a, s, bias=bias) for a, s in zip(widths, narrow, strict=True))
        self.blocks = nn.ModuleList(SideBlock(s, count) for s, count in zip(narrow[1:], heads, strict=True))
        self.shrink = [a[0] // b[0] if a and b else 1 for a, b in pairwise(grids)]
        self.wants_grids = max(self.shrink, default=1) > 1
        self.bridges = nn.ModuleList(nn.Linear(a, b) if a != b else nn.Identity() for a, b in pairwise(narrow))
        gates = len(heads) if gated else 0
        self.gates = nn.ParameterList(nn.Parameter(torch.full((1,), gate_start)) for _ in range(gates))
        self.norm = nn.LayerNorm(narrow[-1], eps=1e-6)
        self.up = nn.Linear(narrow[-1], width)
        self.last = nn.Parameter(torch.full((1,), gate_start)) if merge_last else None
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool) if chosen_by_data else None)

    def forward(
        self,
        feature: Tensor,
        *values: Tensor,
        grids: Sequence[tuple[int, ...] | None] = (),
        sequence: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """y (B, D); with `sequence` also the side's last tokens, each through the same norm and map: (B, N, D)."""
        h: Tensor = self.ladders[0](values[0])
        token = self.how == "token"  # only the last block's first token is then read
        for i, block in enumerate(self.blocks):
            asking = 1 if token and not sequence and i == len(self.blocks) - 1 else None
            if self.shrink[i] > 1:  # the mean over each cell, an odd last row or column by itself
                h = self._shrunk(h, self.shrink[i], grids[i], grids[i + 1])
            rung = self.ladders[i + 1](values[i + 1])
            h = self.bridges[i](h).reshape(rung.shape)  # a map may come before blocks that have it in a row
            if self.gate_after:
                h = self._mix(i, block(h, asking), rung if asking is None else rung[:, :asking])
            else:
                h = block(self._mix(i, h, rung), asking)
        # the norm acts on each token, so a class token can be taken before it
        y: Tensor = self.up(self.norm(pool(h, "token")) if token else pool(self.norm(h), "mean", self.prefix))
        if self.last is not None:
            g = torch.sigmoid(self.last / self.temperature)
            y = g * y + (1 - g) * feature
        return (y, self.up(self.norm(h))) if sequence else y

    @staticmethod
    def _shrunk(h: Tensor, by: int, grid: tuple[int, ...] | None, target: tuple[int, ...] | None) -> Tensor:
        """(B, H, W, s), or the same in a row, (B, H * W, s), from the `grid` to the `target`."""
        mapped = h.reshape(h.shape[0], *grid, -1) if h.dim() == 3 and grid is not None else h
        mapped = mapped.permute(0, 3, 1, 2)
        pooled = F.avg_pool2d(mapped, by, ceil_mode=True)
        if target is not None and pooled.shape[-2:] != target:  # a size for which the backbone cuts cells off
            pooled = F.adaptive_avg_pool2d(mapped, (target[-2], target[-1]))
        mapped = pooled.permute(0, 2, 3, 1)
        return mapped.flatten(1, 2) if h.dim() == 3 else mapped

    def _mix(self, i: int, side: Tensor, rung: Tensor) -> Tensor:
        if not self.learnable:
            return side + rung
        g = torch.sigmoid(self.gates[i] / self.temperature)
        return g * side + (1 - g) * rung
