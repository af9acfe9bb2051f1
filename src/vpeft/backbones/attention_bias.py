"""A bias of the attention map (relative positions, a mask) when more tokens or keys take part than it was made for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def widened(bias: Tensor, queries: int, keys: int, prefix: int) -> Tensor:
    """(..., N, N) -> (..., queries, keys), with 0 for what has no position.

    Tokens that a carrier inserted sit behind `prefix` of the N, among the queries and among the keys; further keys, of
    which `keys - queries` come from an edit of the attention, sit in front of all.
    """
    count = bias.shape[-1]
    tokens, extra = queries - count, keys - queries
    if tokens:
        zeros = bias.new_zeros(()).expand(*bias.shape[:-1], tokens)
        bias = torch.cat([bias[..., :prefix], zeros, bias[..., prefix:]], dim=-1)
        zeros = bias.new_zeros(()).expand(*bias.shape[:-2], tokens, bias.shape[-1])
        bias = torch.cat([bias[..., :prefix, :], zeros, bias[..., prefix:, :]], dim=-2)
    return F.pad(bias, (extra, 0)) if extra else bias
