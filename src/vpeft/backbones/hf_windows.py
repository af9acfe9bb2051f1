"""Swin of transformers with edits between q, k and v, and with tokens in its windows: as VPT has it.

The classes are made when first asked for, as in `hf_attention`, and stand in for the library's while an edit needs
them.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from .hf_attention import PREFIX, made_class, opened
from .window_tokens import BesideTokens


def _tokens(module: nn.Module) -> Tensor | None:
    carrier: BesideTokens | None = module.__dict__.get("vpeft_carrier")
    return None if carrier is None else carrier.tokens


class WidenedBias(nn.Module):
    """The relative-position bias of a window; tokens in front of it have none (bias 0)."""

    def forward(self) -> Tensor:
        bias: Tensor = super().forward()
        tokens = _tokens(self)
        return bias if tokens is None else opened(bias, bias.shape[-1] + tokens.shape[1], 0)


class WideningMerging(nn.Module):
    """Patch merging that also widens the carrier's tokens: four copies through the same frozen norm and reduction."""

    def forward(self, input_feature: Tensor, input_dimensions: tuple[int, int]) -> Tensor:
        tokens, merging = _tokens(self), self.__dict__["_modules"]
        if tokens is not None:
            steps = (
                ("norm", "reduction") if len(merging["norm"].weight) == tokens.shape[-1] * 4 else ("reduction", "norm")
            )
            tokens = torch.cat([tokens] * 4, dim=-1)
            for step in steps:
                tokens = merging[step].forward(tokens)
            self.__dict__["vpeft_carrier"].tokens = tokens
        out: Tensor = super().forward(input_feature, input_dimensions)
        return out


class TokenStage(nn.Module):
    """A stage that is never recomputed as a whole: tokens beside its map would be lost."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class TokenLayer(nn.Module):
    """A Swin layer that takes the carrier's tokens into every window and averages their outputs over the windows.

    The tokens pass the layer's frozen norms and attention; edits act on what flows through the places, which in the
    windows and in the MLP branch includes the tokens, in front. Recomputed layers get the tokens as an argument.
    """

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        layer: Any = self
        tokens = _tokens(self)
        if tokens is None:
            plain: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states, input_dimensions, always_partition, **kwargs
            )
            return plain
        if not always_partition:
            layer.set_shift_and_window_size(input_dimensions)
        arguments = (hidden_states, tokens, input_dimensions)
        if layer.gradient_checkpointing and self.training:
            hidden, tokens = layer._gradient_checkpointing_func(self.with_tokens, *arguments)
        else:
            hidden, tokens = self.with_tokens(*arguments)
        self.__dict__["vpeft_carrier"].tokens = tokens
        return hidden, None

    def with_tokens(self, hidden: Tensor, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, H * W, D) and (B, n, D) -> the same shapes; the carrier is left as it was found."""
        layer: Any = self
        carrier: BesideTokens = self.__dict__["vpeft_carrier"]
        found, carrier.tokens = carrier.tokens, tokens
        try:
            entering = layer.layernorm_before(hidden)
            mapped, own = attend(layer, entering, layer.layernorm_before.forward(tokens), grid)
            assert own is not None
            hidden = hidden + layer.drop_path(mapped)
            tokens = tokens + layer.drop_path.forward(own)
            sequence = torch.cat([tokens, hidden], dim=1)
            sequence = layer.dropout(layer.mlp(layer.layernorm_after(sequence))) + sequence
        finally:
            carrier.tokens = found
        count = tokens.shape[1]
        return sequence[:, count:], sequence[:, :count]


class TokenLayerV2(nn.Module):
    """A Swin V2 layer whose attention branch begins at an identity, and that takes tokens into every window."""

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool | None = False
    ) -> tuple[Tensor, ...]:
        layer: Any = self
        if output_attentions:
            plain: tuple[Tensor, ...] = super().forward(hidden_states, input_dimensions, output_attentions)
            return plain
        opening, tokens = self.__dict__.get("vpeft_opening"), _tokens(self)
        entering = hidden_states if opening is None else opening(hidden_states)
        mapped, own = attend(layer, entering, tokens, input_dimensions)
        hidden = hidden_states + layer.drop_path(layer.layernorm_before(mapped))
        if tokens is None or own is None:
            out = hidden + layer.drop_path(layer.layernorm_after(layer.output(layer.intermediate(hidden))))
            return (out,)
        tokens = tokens + layer.drop_path.forward(layer.layernorm_before.forward(own))
        sequence = torch.cat([tokens, hidden], dim=1)
        sequence = sequence + layer.drop_path(layer.layernorm_after(layer.output(layer.intermediate(sequence))))
        count = tokens.shape[1]
        self.__dict__["vpeft_carrier"].tokens = sequence[:, :count]
        return (sequence[:, count:],)


def attend(layer: Any, x: Tensor, tokens: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """The shifted-window attention of a layer, (B, H * W, D) and perhaps (B, n, D) -> the same shapes."""
    (height, width), (batch, _, channels) = grid, x.shape
    side, shift, count = int(layer.window_size), int(layer.shift_size), 0 if tokens is None else tokens.shape[1]
    x, _ = layer.maybe_pad(x.view(batch, height, width, channels), height, width)
    padded = (x.shape[1], x.shape[2])
    mask = layer.get_attn_mask(*padded, dtype=x.dtype, device=x.device)
    if shift > 0:
        x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
    rows = window_partition(x, (side, side)).view(batch, -1, side * side, channels)
    number = rows.shape[1]
    if tokens is not None:
        rows = torch.cat([tokens[:, None].expand(-1, number, -1, -1), rows], dim=2)
        mask = None if mask is None else opened(mask, count + side * side, 0)
    rows = layer.attention(rows.reshape(batch * number, -1, channels), mask)[0]
    if "dropout" in layer._modules:
        rows = layer.dropout(rows)
    rows = rows.view(batch, number, -1, channels)
    own = None if tokens is None else rows[:, :, :count].mean(dim=1)
    x = window_reverse(rows[:, :, count:].reshape(-1, side, side, channels), (side, side), *padded)
    if shift > 0:
        x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
    return x[:, :height, :width].reshape(batch, height * width, channels), own


class CosineAttention(nn.Module):
    """Swin V2's attention with edits between q, k, v and their use, and with tokens before the window.

    Without either it is bit-equal to the library's, which adds the shift mask twice. Further keys are normalised as
    the window's own are; they, and tokens before the window, have no relative position (bias 0) and no mask (0).
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool | None = False
    ) -> tuple[Tensor, ...]:
        own: Any = self
        core: Any = self.__dict__.get("vpeft_core")
        rows, count, _ = hidden_states.shape
        heads, area = own.num_attention_heads, own.window_size[0] * own.window_size[1]
        q, k, v = (
            layer(hidden_states).view(rows, -1, heads, own.attention_head_size).transpose(1, 2)
            for layer in (own.query, own.key, own.value)
        )
        if core is not None:
            q, k, v = core(q, k, v)
        extra = k.shape[2] - count
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(own.logit_scale, max=math.log(1.0 / 0.01)).exp()
        if core is not None:
            scores = core.scores(scores)
        table = own.continuous_position_bias_mlp(own.relative_coords_table).view(-1, heads)
        bias = table[own.relative_position_index.view(-1)].view(area, area, -1).permute(2, 0, 1).contiguous()
        bias = 16 * torch.sigmoid(bias)
        if count > area:
            bias = opened(bias, count, 0)
        scores = scores + F.pad(bias, (extra, 0)).unsqueeze(0)
        if attention_mask is not None:
            mask = F.pad(attention_mask, (extra, 0)).unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, attention_mask.shape[0], heads, count, count + extra) + mask
            scores = (scores + mask).view(-1, heads, count, count + extra)
        weights = scores.softmax(dim=-1)
        weights = own.dropout(weights if core is None else core.weights(weights))
        out = (weights @ v).permute(0, 2, 1, 3).contiguous().view(rows, count, own.all_head_size)
        return (out, weights) if output_attentions else (out,)


KINDS: dict[str, tuple[str, type[nn.Module]]] = {
    "SwinLayer": ("swin", TokenLayer),
    "SwinStage": ("swin", TokenStage),
    "SwinPatchMerging": ("swin", WideningMerging),
    "SwinRelativePositionBias": ("swin", WidenedBias),
    "Swinv2Layer": ("swinv2", TokenLayerV2),
    "Swinv2Stage": ("swinv2", TokenStage),
    "Swinv2PatchMerging": ("swinv2", WideningMerging),
    "Swinv2SelfAttention": ("swinv2", CosineAttention),
}


def windowed_class(module: nn.Module) -> type[nn.Module]:
    """The class that stands in for a Swin module of transformers."""
    found: type[nn.Module] = getattr(sys.modules[__name__], PREFIX + type(module).__name__.removeprefix(PREFIX))
    return found


def __getattr__(name: str) -> type[nn.Module]:
    """`EditedSwinLayer` and its like, made when first asked for."""
    plain = name.removeprefix(PREFIX)
    if plain == name or plain not in KINDS:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return made_class(__name__, plain, *KINDS[plain])
