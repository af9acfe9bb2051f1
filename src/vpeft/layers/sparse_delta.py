"""An update of a few entries of a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SparseDelta(nn.Module):
    """W -> W + values at k places of each output row, for a weight (out, ...) seen as (out, in).

    Args:
        rows, columns: out and in.
        k: changed entries in each row, at most `columns`.
        taps: of a convolution, entries of a row for each input channel: the size of its kernel.

    The values start at zero. They are all that the optimiser sees: no moment and no weight decay touches another entry,
    and decay pulls a chosen one to its pre-trained value. Until `choose` is called row r changes the centre of the
    kernel of input channel r (and of the next ones); the places are saved with the adapter.
    """

    index: Tensor
    chosen: Tensor

    def __init__(self, rows: int, columns: int, k: int, taps: int = 1) -> None:
        super().__init__()
        self.k = min(k, columns)
        self.values = nn.Parameter(torch.zeros(rows, self.k))
        # The centre meets pixels on the smallest of maps, and unlike channels are not all silent behind a ReLU
        channels = columns // taps
        order = torch.arange(columns, dtype=torch.int32).view(channels, taps).roll(-(taps // 2), 1).T.flatten()
        place = (torch.arange(rows)[:, None] % channels + torch.arange(self.k)) % columns
        self.register_buffer("index", order[place])
        self.register_buffer("chosen", torch.zeros((), dtype=torch.bool))

    def choose(self, score: Tensor) -> None:
        """Take the k entries of each row with the largest |score|, (out, ...)."""
        self.index.copy_(score.flatten(1).abs().topk(self.k, dim=1).indices)
        self.chosen.fill_(True)

    def forward(self, weight: Tensor) -> Tensor:
        change = self.values.to(weight.dtype)
        return weight.flatten(1).scatter_add(1, self.index.long(), change).reshape(weight.shape)
