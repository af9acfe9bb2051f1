"""timm's Swin Transformer V2: cosine attention, norms that close the branches, positions through a small network."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from timm.models.swin_transformer_v2 import (
    PatchMerging,
    SwinTransformerV2Block,
    SwinTransformerV2Stage,
    WindowAttention,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention_bias import widened
from ..backbone import Backbone
from ..blocks import AttentionSite, Block
from ..builders import Where, attention_core, inner_parameters, projection, site
from ..describe import UnknownBackbone, family
from ..functional_qkv import fused_places, fused_qkv, other_parameters
from ..points import Point, StandIn
from ..window_tokens import BesideTokens, attend_beside, checkpointed
from .timm_swin import Kinds, inside, swin_block, windowed


class EditedCosineAttention(WindowAttention):
    """timm's cosine attention with edits at and between its projections, and with tokens before the window.

    Without either it is bit-equal to timm's. Further keys are normalised as the window's own are; they, and tokens
    before the window, have no relative position (bias 0) and no shift mask (0).
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        rows, count, channels = x.shape
        q, k, v = fused_qkv(self, x).reshape(rows, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        core: Any = self.__dict__.get("vpeft_core")
        if core is not None:
            q, k, v = core(q, k, v)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp()
        if core is not None:
            scores = core.scores(scores)
        keys, area = k.shape[2], self.window_size[0] * self.window_size[1]
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        positions = cast(Tensor, self.relative_position_index)
        bias = table[positions.view(-1)].view(area, area, -1).permute(2, 0, 1).contiguous()
        scores = scores + widened(16 * torch.sigmoid(bias), count, keys, 0).unsqueeze(0)
        if mask is not None:
            open_ = widened(mask, count, keys, 0).unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, mask.shape[0], self.num_heads, count, keys) + open_
            scores = scores.view(-1, self.num_heads, count, keys)
        weights = self.softmax(scores)
        x = self.attn_drop(weights if core is None else core.weights(weights)) @ v
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(rows, count, channels)))
        return out


class EditedSwinV2Block(SwinTransformerV2Block):
    """A block whose attention branch begins at an identity, and that takes a carrier's tokens into every window.

    The tokens pass the block's frozen norms and attention; edits act on what flows through the places, which in the
    windows and in the MLP branch includes the tokens, in front.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        opening: Any = self.__dict__.get("vpeft_opening")
        entering = x if opening is None else opening(x)
        carrier: BesideTokens | None = self.__dict__.get("vpeft_carrier")
        tokens = None if carrier is None else carrier.tokens
        if carrier is None or tokens is None:
            x = (x + self.drop_path1(self.norm1(self._attn(entering)))).reshape(batch, -1, channels)
            plain: Tensor = x + self.drop_path2(self.norm2(self.mlp(x)))
            return plain.reshape(batch, height, width, channels)
        count = tokens.shape[1]
        mapped, own = attend_beside(self, entering, tokens)
        x = x + self.drop_path1(self.norm1(mapped))
        tokens = tokens + self.drop_path1.forward(self.norm1.forward(own))
        sequence = torch.cat([tokens, x.reshape(batch, -1, channels)], dim=1)
        sequence = sequence + self.drop_path2(self.norm2(self.mlp(sequence)))
        carrier.tokens = sequence[:, :count]
        mapped_again: Tensor = sequence[:, count:].reshape(batch, height, width, channels)
        return mapped_again


class PromptedPatchMergingV2(PatchMerging):
    """Patch merging that also widens the carrier's tokens: four copies through the same frozen reduction and norm."""

    def forward(self, x: Tensor) -> Tensor:
        carrier = cast(BesideTokens, self.vpeft_carrier)
        if carrier.tokens is not None:
            fourfold = torch.cat([carrier.tokens] * 4, dim=-1)
            carrier.tokens = self.norm.forward(self.reduction.forward(fourfold))
        out: Tensor = super().forward(x)
        return out


class PromptedSwinV2Stage(SwinTransformerV2Stage):
    """A stage whose activation checkpoints take the carrier's tokens in and out with the map."""

    def forward(self, x: Tensor) -> Tensor:
        carrier = cast(BesideTokens, self.vpeft_carrier)
        out: Tensor = checkpointed(self, carrier, x) if self.grad_checkpointing else super().forward(x)
        return out


@family("timm_swin_v2", "timm.models.swin_transformer_v2.SwinTransformerV2")
def describe_timm_swin_v2(model: nn.Module) -> Backbone:
    """timm SwinTransformerV2: cosine attention in shifted windows, functional qkv bias, norms after the branches."""
    kinds = Kinds(_block, PromptedSwinV2Stage, (PatchMerging, PromptedPatchMergingV2))
    return windowed("timm_swin_v2", model, kinds)


def _block(index: int, stage: int, module: Any, stride: int, carrier: BesideTokens) -> Block:
    kind: type = type(module)
    if kind is not SwinTransformerV2Block and kind is not EditedSwinV2Block:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_swin_v2 describes SwinTransformerV2Block.")
    attn = _attention(f"blocks.{index}.attn", module.attn, inside(index, module, stride), module.dim)
    opening = nn.Identity()
    begins = Point(opening, "input", needs=(StandIn(module, EditedSwinV2Block, {"vpeft_opening": opening}),))
    pairs = ((module, EditedSwinV2Block), (module.attn, EditedCosineAttention))
    return swin_block(index, stage, module, stride, carrier, attn, pairs, begins)


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    parts = fused_places(name, module, EditedCosineAttention, where)
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    parts["core"] = attention_core(
        f"{name}.core", module, EditedCosineAttention, where, width, module.num_heads, per_window=True
    )
    own = {**other_parameters(module), **inner_parameters("cpb_mlp", module.cpb_mlp)}
    enter, exit = Point(module, "input"), Point(module, "output")
    return site(name, AttentionSite, enter, exit, where, width, parts, own, (parts["qkv"],))  # type: ignore[arg-type]
