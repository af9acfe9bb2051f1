"""timm's ViT with relative positions: a bias of the attention map, by table or by a small network."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer_relpos import RelPosAttention, RelPosBlock, ResPostRelPosBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention_bias import widened
from ..backbone import Backbone
from ..blocks import Block
from ..builders import Where, inner_parameters, own_parameters, token_rewrites
from ..describe import UnknownBackbone, family
from ..points import Layout, Point
from ..timm_isotropic import isotropic, layer_scales, residual_block
from ..tokens import TokenCarrier
from .timm_vit import attention_places, mlp_places


class EditedRelPosAttention(RelPosAttention):
    """timm's attention with edits between q, k, v and their use, and with inserted tokens; bit-equal without.

    Inserted tokens and further keys have no relative position: the bias is 0 there.
    """

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        core: Any = self.__dict__.get("vpeft_core")
        if core is not None:
            q, k, v = core(q, k, v)
        own: Any = self.rel_pos
        bias = shared_rel_pos if own is None else own.get_bias()
        if bias is not None:
            carrier: Any = self.__dict__.get("vpeft_carrier")
            bias = widened(bias, count, k.shape[2], carrier.prefix if carrier else 0)
        mapped = core is not None and core.needs_map
        if self.fused_attn and not mapped:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            scores = core.scores(scores) if mapped else scores
            weights = (scores if bias is None else scores + bias).softmax(dim=-1)
            x = self.attn_drop(core.weights(weights) if mapped else weights) @ v
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, count, -1)))
        return out


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    RelPosAttention: EditedRelPosAttention,
    EditedRelPosAttention: EditedRelPosAttention,
}


@family("timm_relpos", "timm.models.vision_transformer_relpos.VisionTransformerRelPos")
def describe_timm_relpos(model: nn.Module) -> Backbone:
    """timm VisionTransformerRelPos: positions as a bias of each block or of all, norms before or after the branches."""
    vit: Any = model
    prefix, stride = int(vit.num_prefix_tokens), int(vit.patch_embed.patch_size[0])
    carrier, grid = TokenCarrier(prefix), tuple(vit.patch_embed.grid_size)
    blocks = [
        _block(index, module, Where(index, Layout.TOKENS, grid, prefix, stride), carrier)
        for index, module in enumerate(vit.blocks)
    ]
    return isotropic("timm_relpos", model, blocks, carrier, Point(vit.blocks[0], "input"))


def _block(index: int, module: Any, where: Where, carrier: TokenCarrier) -> Block:
    kind: type = type(module)
    if kind is not RelPosBlock and kind is not ResPostRelPosBlock:
        raise UnknownBackbone(
            f"blocks.{index} is a {kind.__name__}; timm_relpos describes RelPosBlock and ResPostRelPosBlock."
        )
    name, width, attn = f"blocks.{index}", int(module.norm1.weight.shape[0]), module.attn
    own = own_parameters(attn)
    if attn.rel_pos is not None:
        own |= inner_parameters("rel_pos", attn.rel_pos)
    return residual_block(
        index,
        module,
        attention_places(f"{name}.attn", attn, where, width, KINDS, own=own),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
        where,
        carrier,
        post=kind is ResPostRelPosBlock,
        gains=layer_scales(module),
        rewrites=token_rewrites(((attn, EditedRelPosAttention),)),
    )
