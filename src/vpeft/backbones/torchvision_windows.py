"""torchvision's Swin with edits inside its window attention, and with tokens in its windows: as VPT has it.

These classes stand in for the library's while an edit needs them.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

from .attention_bias import widened
from .functional_qkv import BiasedLinear
from .window_tokens import BesideTokens, beside


def _tokens(module: nn.Module) -> Tensor | None:
    carrier: BesideTokens | None = module.__dict__.get("vpeft_carrier")
    return None if carrier is None else carrier.tokens


def _attend(attention: Any, x: Tensor, cosine: bool) -> Tensor:
    """(B, H, W, D) -> (B, H, W, D) as torchvision computes it, through the projections and with edits between them.

    The carrier's tokens (B, n, D) join every window in front, without position or mask, and leave it as the mean over
    the windows.
    """
    batch, height, width, channels = x.shape
    heads, (high, wide) = attention.num_heads, attention.window_size
    x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
    rows, columns = x.shape[1] // high, x.shape[2] // wide
    # one window that covers an axis is never shifted along it
    down = 0 if rows == 1 else attention.shift_size[0]
    across = 0 if columns == 1 else attention.shift_size[1]
    if down + across > 0:
        x = torch.roll(x, shifts=(-down, -across), dims=(1, 2))
    x = x.view(batch, rows, high, columns, wide, channels).permute(0, 1, 3, 2, 4, 5)
    number = rows * columns
    x = x.reshape(batch * number, high * wide, channels)
    joining = _tokens(attention)
    tokens = 0 if joining is None else joining.shape[1]
    if joining is not None:
        x = torch.cat([joining[:, None].expand(-1, number, -1, -1).reshape(x.shape[0], tokens, channels), x], dim=1)
    qkv = _projected(attention, x, cosine).reshape(*x.shape[:2], 3, heads, channels // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    core: Any = attention.__dict__.get("vpeft_core")
    if core is not None:
        q, k, v = core(q, k, v)
    if cosine:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(attention.logit_scale, max=math.log(100.0)).exp()
    else:
        scores = (q * (channels // heads) ** -0.5).matmul(k.transpose(-2, -1))
    if core is not None:
        scores = core.scores(scores)
    count, keys = q.shape[2], k.shape[2]
    scores = scores + widened(attention.get_relative_position_bias(), count, keys, 0)
    if down + across > 0:
        mask = widened(_mask(x, (rows, high, down), (columns, wide, across)), count, keys, 0)
        scores = scores.view(batch, number, heads, count, keys) + mask[None, :, None]
        scores = scores.view(-1, heads, count, keys)
    weights = F.softmax(scores, dim=-1)
    weights = weights if core is None else core.weights(weights)
    weights = F.dropout(weights, p=attention.attention_dropout, training=attention.training)
    x = attention.proj(weights.matmul(v).transpose(1, 2).reshape(x.shape[0], count, channels))
    x = F.dropout(x, p=attention.dropout, training=attention.training)
    if joining is not None:
        attention.vpeft_carrier.tokens = x[:, :tokens].reshape(batch, number, tokens, channels).mean(dim=1)
        x = x[:, tokens:]
    x = x.reshape(batch, rows, columns, high, wide, channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows * high, columns * wide, channels)
    if down + across > 0:
        x = torch.roll(x, shifts=(down, across), dims=(1, 2))
    return x[:, :height, :width, :].contiguous()


def _projected(attention: Any, x: Tensor, cosine: bool) -> Tensor:
    """q, k and v of every window; with cosine attention the keys have no bias."""
    bias = attention.qkv.bias
    if not cosine or bias is None:
        plain: Tensor = attention.qkv(x)
        return plain
    third = bias.numel() // 3
    bias = torch.cat([bias[:third], torch.zeros_like(bias[:third]), bias[2 * third :]])
    if isinstance(attention.qkv, BiasedLinear):
        return cast(Tensor, attention.qkv(x, bias))
    return F.linear(x, attention.qkv.weight, bias)


def _mask(x: Tensor, down: tuple[int, int, int], across: tuple[int, int, int]) -> Tensor:
    """-100 between cells that only the shift brought into one window, 0 elsewhere, (windows, area, area)."""
    regions = [regions_of(x, *axis) for axis in (down, across)]
    region = regions[0][:, None, :, None] * 3 + regions[1][None, :, None, :]
    flat = region.reshape(down[0] * across[0], -1)
    return (flat[:, None, :] != flat[:, :, None]).to(x.dtype) * -100.0


def regions_of(x: Tensor, windows: int, size: int, shift: int) -> Tensor:
    """Along one axis: 0 before the last window, 1 in it, 2 for what the shift brought round: (windows, size)."""
    at = torch.arange(windows * size, device=x.device)
    region = (at >= windows * size - size).long() + (at >= windows * size - shift).long() * (shift > 0)
    return region.view(windows, size)


class EditedShiftedWindows(ShiftedWindowAttention):  # type: ignore[misc]
    """torchvision's shifted window attention with edits and tokens; bit-equal to it without."""

    def forward(self, x: Tensor) -> Tensor:
        return _attend(self, x, False)


class EditedCosineWindows(ShiftedWindowAttentionV2):  # type: ignore[misc]
    """torchvision's cosine window attention with edits and tokens; bit-equal to it without."""

    def forward(self, x: Tensor) -> Tensor:
        return _attend(self, x, True)


class PromptedBlock(SwinTransformerBlock):  # type: ignore[misc]
    """A block that takes the carrier's tokens into every window and through the MLP, in front of the cells.

    The tokens pass the block's frozen norm before the attention; edits act on what flows through the places, which in
    the windows and in the MLP branch includes the tokens.
    """

    def forward(self, x: Tensor) -> Tensor:
        tokens = beside(self)
        if tokens is None:
            plain: Tensor = super().forward(x)
            return plain
        carrier = cast(BesideTokens, self.vpeft_carrier)
        carrier.tokens = self.norm1.forward(tokens)
        x = x + self.stochastic_depth(self.attn(self.norm1(x)))
        sequence = torch.cat([tokens + self.stochastic_depth.forward(carrier.tokens), x.flatten(1, -2)], dim=1)
        sequence = sequence + self.stochastic_depth(self.mlp(self.norm2(sequence)))
        carrier.tokens = sequence[:, : tokens.shape[1]]
        return cast(Tensor, sequence[:, tokens.shape[1] :].reshape(x.shape))


class PromptedBlockV2(SwinTransformerBlockV2):  # type: ignore[misc]
    """The same for version 2, whose norms close its branches."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = beside(self)
        if tokens is None:
            plain: Tensor = super().forward(x)
            return plain
        carrier = cast(BesideTokens, self.vpeft_carrier)
        x = x + self.stochastic_depth(self.norm1(self.attn(x)))
        own = self.norm1.forward(carrier.tokens)
        sequence = torch.cat([tokens + self.stochastic_depth.forward(own), x.flatten(1, -2)], dim=1)
        sequence = sequence + self.stochastic_depth(self.norm2(self.mlp(sequence)))
        carrier.tokens = sequence[:, : tokens.shape[1]]
        return cast(Tensor, sequence[:, tokens.shape[1] :].reshape(x.shape))


class PromptedMerging(PatchMerging):  # type: ignore[misc]
    """Patch merging that also widens the carrier's tokens: four copies through the same frozen norm and reduction."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(self)
        if tokens is not None:
            wide = self.norm.forward(torch.cat([tokens] * 4, dim=-1))
            cast(BesideTokens, self.vpeft_carrier).tokens = self.reduction.forward(wide)
        return cast(Tensor, super().forward(x))


class PromptedMergingV2(PatchMergingV2):  # type: ignore[misc]
    """The same for version 2, which norms what was reduced."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(self)
        if tokens is not None:
            narrow = self.reduction.forward(torch.cat([tokens] * 4, dim=-1))
            cast(BesideTokens, self.vpeft_carrier).tokens = self.norm.forward(narrow)
        return cast(Tensor, super().forward(x))
