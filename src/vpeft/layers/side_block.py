"""A small pre-norm transformer block for side networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.fused_qkv import fused_qkv
from ..errors import VpeftError


class SideBlock(nn.Module):
    """x -> x + proj(MHSA(LN x)), then x + MLP(LN x), over all tokens of x (B, ..., s).

    Args:
        width: s.
        heads: wanted number of heads; the nearest smaller one that divides s is used.
        hidden: width of the MLP, 4 s by default.
        eps: of both norms.

    Weights start as timm's blocks do: normal with deviation 0.02, cut at two, biases at zero.
    """

    def __init__(self, width: int, heads: int, hidden: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = math.gcd(width, heads)
        hidden = hidden or 4 * width
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        for linear in (self.qkv, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, asking: int | None = None) -> Tensor:
        """Compute all tokens; with `asking`, compute only that number of leading tokens and their queries."""
        shape, x = x.shape, x.flatten(1, -2)
        q, k, v = fused_qkv(self.qkv, self.norm1(x), self.heads, asking)
        if asking is not None:
            q, x = q[:, :, :asking], x[:, :asking]
            shape = x.shape
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x.reshape(shape)


class TooFewHeads(VpeftError):
    """Heads of a side block that would be wider than the frozen heads that fill them."""


def side_heads(frozen: Iterable[int], wanted: int | None, reduction: int | None) -> list[int]:
    """Numbers of heads of the side blocks, `wanted` of them or as many as the frozen block has, whichever is less.

    Args:
        frozen: the frozen blocks' numbers of heads.
        wanted: None for as many as these.
        reduction: D / s, where side heads are filled from frozen ones; None where they start at random.

    Raises:
        TooFewHeads: no frozen head has as many channels as a side head would have.
    """
    counts = list(frozen)
    least = 1 if reduction is None else max(math.ceil(count / reduction) for count in counts)
    if wanted is not None and wanted < least:
        raise TooFewHeads(
            f"heads = {wanted} makes heads wider than those of the frozen blocks, which fill them here. Give at least"
            f' {least}, or let the side blocks start at random (init="random").'
        )
    return [min(wanted or count, count) for count in counts]


@torch.no_grad()
def prune(
    sides: Sequence[nn.Module],
    weights: Sequence[Mapping[str, Tensor]],
    heads: Sequence[int],
    powers: Sequence[Mapping[str, Tensor]] | None = None,
) -> None:
    """Fill side blocks with the strongest channels, head dimensions and hidden units of wide ones.

    Args:
        sides: `SideBlock`s.
        weights: for each, the wide block's q, k, v, proj, fc1, fc2 as (out, in).
        heads: for each, the wide block's number of heads; the side's heads are the first of these.
        powers: for each, how much every entry of `weights` matters; their squares by default.

    Strength is the sum of the entries' powers. Residual channels are one set for all blocks of equal width, so that
    the stream means the same in each; q and k keep the same rows, v and proj the same.
    """
    powers = powers or [{name: weight.square() for name, weight in wide.items()} for wide in weights]
    strength: dict[int, Tensor] = {}
    for power in powers:
        reads = torch.stack([power[name].sum(0) for name in ("q", "k", "v", "fc1")]).sum(0)
        total = reads + power["proj"].sum(1) + power["fc2"].sum(1)
        strength[len(total)] = strength.get(len(total), torch.zeros_like(total)) + total
    for side, wide, power, count in zip(sides, weights, powers, heads, strict=True):
        assert isinstance(side, SideBlock)
        if wide["q"].is_meta:
            continue
        width, hidden = side.norm1.weight.shape[0], side.fc1.weight.shape[0]
        channels = _top(strength[wide["q"].shape[1]], width)
        per_head, kept = len(wide["q"]) // count, width // side.heads

        def rows(total: Tensor, per_head: int = per_head, kept: int = kept, used: int = side.heads) -> Tensor:
            return torch.cat([i * per_head + _top(total[i * per_head : (i + 1) * per_head], kept) for i in range(used)])

        keys = rows(power["q"].sum(1) + power["k"].sum(1))
        values = rows(power["v"].sum(1) + power["proj"].sum(0))
        units = _top(power["fc1"].sum(1) + power["fc2"].sum(0), hidden)
        qkv = [wide[name][index][:, channels] for name, index in (("q", keys), ("k", keys), ("v", values))]
        side.qkv.weight.copy_(torch.cat(qkv))
        side.proj.weight.copy_(wide["proj"][channels][:, values])
        side.fc1.weight.copy_(wide["fc1"][units][:, channels])
        side.fc2.weight.copy_(wide["fc2"][channels][:, units])


def _top(total: Tensor, count: int) -> Tensor:
    """Indices of the largest entries, in their own order."""
    return total.topk(count).indices.sort().values
