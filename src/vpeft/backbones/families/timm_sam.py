"""timm's image encoder of SAM: a map through windows and, in some blocks, over the whole image; a neck at the end.

Inserted tokens travel beside the map: they join every window in front, as VPT has it for Swin, or the whole image, and
have no position; the neck's convolutions have no place for them, so they leave before it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models import checkpoint_seq
from timm.models.vision_transformer_sam import Attention as SamAttention
from timm.models.vision_transformer_sam import Block as SamBlock
from timm.models.vision_transformer_sam import (
    VisionTransformerSAM,
    get_decomposed_rel_pos_bias,
    window_partition,
    window_unpartition,
)
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention_bias import widened
from ..backbone import Backbone
from ..blocks import Block
from ..builders import Where, norm, projection, token_rewrites
from ..describe import UnknownBackbone, family
from ..places import Norm, Place
from ..points import Layout, Point, StandIn
from ..timm_isotropic import isotropic, layer_scales, residual_block
from ..window_tokens import BesideTokens, beside, checkpointed_blocks
from .timm_vit import attention_places, mlp_places


def _tokens(module: nn.Module) -> Tensor | None:
    carrier: BesideTokens | None = module.__dict__.get("vpeft_carrier")
    return None if carrier is None else carrier.tokens


class EditedSamAttention(SamAttention):
    """timm's attention with edits between q, k, v and their use, and with the carrier's tokens in front of the cells.

    Without either it is bit-equal to timm's. Tokens and further keys have no position: no bias, and they are not
    turned. What comes out for the tokens is averaged over the windows and left with the carrier.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        cells, heads, joining = height * width, self.num_heads, _tokens(self)
        x = x.reshape(batch, cells, -1)
        if joining is not None:
            tokens = joining.repeat_interleave(batch // len(joining), dim=0)
            x = torch.cat([tokens, x], dim=1)
        count, front = x.shape[1], x.shape[1] - cells
        qkv = self.qkv(x).view(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * heads, count, -1).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        bias = None
        if self.use_rel_pos:
            size = (height, width)
            bias = get_decomposed_rel_pos_bias(q[:, front:], self.rel_pos_h, self.rel_pos_w, size, size)
        elif self.rope is not None:
            turn: Any = self.rope
            q, k = (
                torch.cat([part[:, :front], apply_rot_embed_cat(part[:, front:], turn.get_embed()).type_as(v)], dim=1)
                for part in (q, k)
            )
        core: Any = self.__dict__.get("vpeft_core")
        if core is not None:
            q, k, v = (part.flatten(0, 1) for part in core(*(part.unflatten(0, (batch, heads)) for part in (q, k, v))))
        if bias is not None:
            bias = widened(bias, count, k.shape[1], 0)
        if self.fused_attn and (core is None or not core.needs_map):
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            if core is not None:
                scores = core.scores(scores.unflatten(0, (batch, heads))).flatten(0, 1)
            weights = (scores if bias is None else scores + bias).softmax(dim=-1)
            if core is not None:
                weights = core.weights(weights.unflatten(0, (batch, heads))).flatten(0, 1)
            x = self.attn_drop(weights) @ v
        x = x.view(batch, heads, count, -1).transpose(1, 2).reshape(batch, count, -1)
        out: Tensor = self.proj_drop(self.proj(x))
        if joining is not None:
            own = out[:, :front].unflatten(0, (len(joining), -1))  # type: ignore[no-untyped-call]
            cast(BesideTokens, self.vpeft_carrier).tokens = own.mean(dim=1)
        return out[:, front:].reshape(batch, height, width, -1)


class EditedSamBlock(SamBlock):
    """A block whose attention branch ends at an identity, behind the windows; bit-equal to timm's.

    The carrier's tokens pass the frozen norm and LayerScale of the attention; edits act on what flows through the
    places, which in the windows and in the MLP branch includes the tokens, in front.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        tokens, carrier = beside(self), cast(BesideTokens, self.__dict__.get("vpeft_carrier"))
        windows, padded = self.norm1(x), None
        if self.window_size > 0:
            windows, padded = window_partition(windows, self.window_size)
        if tokens is not None:
            carrier.tokens = self.norm1.forward(tokens)
        windows = self.drop_path1(self.ls1(self.attn(windows)))
        if padded is not None:
            windows = window_unpartition(windows, self.window_size, (height, width), padded)
        closing: Any = self.__dict__.get("vpeft_closing")
        x = (x + (windows if closing is None else closing(windows))).reshape(batch, height * width, -1)
        if tokens is not None:
            own = self.drop_path1.forward(self.ls1.forward(cast(Tensor, carrier.tokens)))
            x = torch.cat([tokens + own, x], dim=1)
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        if tokens is not None:
            carrier.tokens, out = out[:, : tokens.shape[1]], out[:, tokens.shape[1] :]
        return out.reshape(batch, height, width, -1)


class EditedSam(VisionTransformerSAM):
    """The model with an identity between the last block and the neck, in the blocks' layout; bit-equal to timm's.

    Its activation checkpoints take the carrier's tokens in and out with the map.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + resample_abs_pos_embed_nhwc(self.pos_embed, x.shape[1:3])
        x = self.norm_pre(self.patch_drop(self.pos_drop(x)))
        carrier: BesideTokens | None = self.__dict__.get("vpeft_carrier")
        if self.grad_checkpointing and carrier is not None:
            x = checkpointed_blocks(self.blocks, carrier, x)
        else:
            x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        end: Any = self.__dict__.get("vpeft_end")
        out: Tensor = self.neck((x if end is None else end(x)).permute(0, 3, 1, 2))
        return out


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    SamAttention: EditedSamAttention,
    EditedSamAttention: EditedSamAttention,
}


@family("timm_sam", "timm.models.vision_transformer_sam.VisionTransformerSAM")
def describe_timm_sam(model: nn.Module) -> Backbone:
    """timm VisionTransformerSAM: windows and global attention over a map, decomposed relative positions or rotary."""
    sam: Any = model
    stride, grid = int(sam.patch_embed.patch_size[0]), tuple(sam.patch_embed.grid_size)
    carrier = BesideTokens(nn.Identity())
    blocks = [
        _block(index, module, Where(index, Layout.MAP, grid, 0, stride), carrier)
        for index, module in enumerate(sam.blocks)
    ]
    for block in blocks:
        block.rewrites = token_rewrites((*block.rewrites["insert_tokens"], (model, EditedSam)))
    more, final = _neck(sam, Where(len(blocks), Layout.CHANNELS_FIRST, grid, 0, stride))
    end = nn.Identity()
    return isotropic(
        "timm_sam",
        model,
        blocks,
        carrier,
        Point(sam.norm_pre, "output"),
        layout=Layout.MAP,
        more=more,
        final=final,
        end=Point(end, "input", needs=(StandIn(model, EditedSam, {"vpeft_end": end}),)),
        classifier=_head,
    )


def _head(model: nn.Module) -> nn.Module:
    sam: Any = model
    found: nn.Module = sam.head.fc
    return found


def _neck(sam: Any, where: Where) -> tuple[tuple[Place, ...], Norm | None]:
    """What follows the blocks: a norm, or a bottleneck of convolutions and norms; the last norm is the model's."""
    layers = list(sam.neck) if isinstance(sam.neck, nn.Sequential) else [sam.neck]
    more: list[Place] = []
    final: Norm | None = None
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            more.append(projection(f"neck.{number}", layer, where))
        elif isinstance(layer, nn.LayerNorm):
            last = layer is layers[-1]
            place = norm("norm" if last else f"neck.{number}", layer, where, int(layer.weight.shape[0]))
            if last:
                final = place
            else:
                more.append(place)
    return tuple(more), final


def _block(index: int, module: Any, where: Where, carrier: BesideTokens) -> Block:
    kind: type = type(module)
    if kind is not SamBlock and kind is not EditedSamBlock:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_sam describes the Block of SAM.")
    name, width, window = f"blocks.{index}", int(module.norm1.weight.shape[0]), int(module.window_size)
    attended = where.within((window, window)) if window else where
    rows = attended.but(Layout.TOKENS)
    attn = attention_places(f"{name}.attn", module.attn, rows, width, KINDS, outer=attended)
    attn.core.per_window = window > 0
    mlp = mlp_places(f"{name}.mlp", module.mlp, where.but(Layout.TOKENS), width)
    carried = token_rewrites(((module, EditedSamBlock), (module.attn, EditedSamAttention)))
    block = residual_block(index, module, attn, mlp, where, carrier, gains=layer_scales(module), rewrites=carried)
    for part in ("norm2", "mlp_branch", "skip2", "stream2"):
        block.parts[part].layout = Layout.TOKENS
    if window:
        if any(size % window for size in where.grid or ()):
            block.norm1.consumers = ()  # padded windows carry zeros that the norm's edits never see
        closing = nn.Identity()
        ends = Point(closing, "output", needs=(StandIn(module, EditedSamBlock, {"vpeft_closing": closing}),))
        for part in ("attn_branch", "skip1"):
            block.parts[part].exit = ends
        block.attn_branch.writer = None if any(size % window for size in where.grid or ()) else attn.proj
    return block
