"""torchvision's Video Swin with edits inside its window attention over time, height and width, and with tokens in it.

This class stands in for the library's while an edit needs it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from .attention_bias import widened
from .torchvision_windows import regions_of
from .window_tokens import BesideTokens


def _attend(attention: Any, x: Tensor) -> Tensor:
    """(B, T, H, W, D) -> (B, T, H, W, D) as torchvision computes it, through the projections and with edits between.

    The carrier's tokens (B, n, D) join every window in front, without position or mask, and leave it as the mean over
    the windows.
    """
    batch, *sizes, channels = x.shape
    heads = int(attention.num_heads)
    # a window that covers an axis shrinks to it, and is not shifted along it
    window = [min(own, size) for own, size in zip(attention.window_size, sizes, strict=True)]
    shift = [
        0 if size <= own else step
        for own, step, size in zip(attention.window_size, attention.shift_size, sizes, strict=True)
    ]
    pads = [-size % own for own, size in zip(window, sizes, strict=True)]
    x = F.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    shifted = sum(shift) > 0
    if shifted:
        x = torch.roll(x, shifts=tuple(-step for step in shift), dims=(1, 2, 3))
    counts = [size // own for size, own in zip(x.shape[1:4], window, strict=True)]
    number, area = counts[0] * counts[1] * counts[2], window[0] * window[1] * window[2]
    x = x.view(batch, counts[0], window[0], counts[1], window[1], counts[2], window[2], channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch * number, area, channels)
    carrier: BesideTokens | None = attention.__dict__.get("vpeft_carrier")
    joining = None if carrier is None else carrier.tokens
    tokens = 0 if joining is None else joining.shape[1]
    if joining is not None:
        x = torch.cat([joining[:, None].expand(-1, number, -1, -1).reshape(x.shape[0], tokens, channels), x], dim=1)
    qkv = attention.qkv(x).reshape(*x.shape[:2], 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    core: Any = attention.__dict__.get("vpeft_core")
    if core is not None:
        q, k, v = core(q, k, v)
    scores = (q * (channels // heads) ** -0.5).matmul(k.transpose(-2, -1))
    if core is not None:
        scores = core.scores(scores)
    count, keys = q.shape[2], k.shape[2]
    scores = scores + widened(attention.get_relative_position_bias(window), count, keys, 0)
    if shifted:
        mask = widened(_mask(x, window, shift, counts), count, keys, 0)
        scores = scores.view(batch, number, heads, count, keys) + mask[None, :, None]
        scores = scores.view(-1, heads, count, keys)
    weights = F.softmax(scores, dim=-1)
    weights = weights if core is None else core.weights(weights)
    weights = F.dropout(weights, p=attention.attention_dropout, training=attention.training)
    x = attention.proj(weights.matmul(v).transpose(1, 2).reshape(x.shape[0], count, channels))
    x = F.dropout(x, p=attention.dropout, training=attention.training)
    if joining is not None:
        assert carrier is not None
        carrier.tokens = x[:, :tokens].reshape(batch, number, tokens, channels).mean(dim=1)
        x = x[:, tokens:]
    x = x.reshape(batch, *counts, *window, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    x = x.reshape(batch, *(size * own for size, own in zip(counts, window, strict=True)), channels)
    if shifted:
        x = torch.roll(x, shifts=tuple(shift), dims=(1, 2, 3))
    return x[:, : sizes[0], : sizes[1], : sizes[2], :].contiguous()


def _mask(x: Tensor, window: list[int], shift: list[int], counts: list[int]) -> Tensor:
    """-100 between cells that only the shift brought into one window, 0 elsewhere, (windows, area, area)."""
    regions = [regions_of(x, *axis) for axis in zip(counts, window, shift, strict=True)]
    time, down, across = regions  # each (windows along the axis, size along the axis)
    region = (
        time[:, None, None, :, None, None] * 9
        + down[None, :, None, None, :, None] * 3
        + across[None, None, :, None, None, :]
    )
    flat = region.reshape(counts[0] * counts[1] * counts[2], -1)
    return (flat[:, None, :] != flat[:, :, None]).to(x.dtype) * -100.0


class EditedShiftedWindows3d(ShiftedWindowAttention3d):  # type: ignore[misc]
    """torchvision's shifted window attention over clips with edits and tokens; bit-equal to it without."""

    def forward(self, x: Tensor) -> Tensor:
        return _attend(cast(Any, self), x)
