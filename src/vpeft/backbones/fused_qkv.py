"""q, k and v out of one linear layer, with queries for the leading tokens alone where no others are wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fused_qkv(layer: nn.Module, x: Tensor, heads: int, asking: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, h, N or `asking`, d), k and v (B, h, N, d) of tokens x (B, N, D).

    Args:
        layer: gives 3 h d channels, those of q before those of k before those of v.
        heads: h.
        asking: how many leading tokens are queries; None for all. It is heeded where the layer is a plain linear one
            whose call nobody observes; elsewhere the layer is called and all queries are given.
    """
    batch, count, _ = x.shape
    # a hook on the layer must see a call, and another class of layer knows itself what it computes
    if asking is None or type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        q, k, v = layer(x).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v
    inner = layer.out_features // 3
    weight = torch.split(layer.weight, [inner, 2 * inner])
    bias = (None, None) if layer.bias is None else torch.split(layer.bias, [inner, 2 * inner])
    q = F.linear(x[:, :asking], weight[0], bias[0]).reshape(batch, asking, heads, -1).transpose(1, 2)
    k, v = F.linear(x, weight[1], bias[1]).reshape(batch, count, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v
