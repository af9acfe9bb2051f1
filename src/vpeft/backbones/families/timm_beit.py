"""timm's BEiT (versions 1 and 2): a fused qkv used functionally, relative positions as a bias of the attention map."""

from __future__ import annotations

from typing import Any

from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Block as BeitBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention_bias import widened
from ..backbone import Backbone
from ..blocks import AttentionSite, Block
from ..builders import Where, attention_core, projection, site, token_rewrites
from ..describe import UnknownBackbone, family
from ..functional_qkv import fused_places, fused_qkv, other_parameters
from ..points import Layout, Point
from ..timm_isotropic import Gain, isotropic, residual_block
from ..tokens import TokenCarrier
from .timm_vit import mlp_places


class EditedBeitAttention(BeitAttention):
    """timm's attention with edits at and between its projections, and with inserted tokens; bit-equal without.

    Inserted tokens and further keys have no relative position: the bias is 0 there.
    """

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        batch, count, _ = x.shape
        qkv = fused_qkv(self, x).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        core: Any = self.__dict__.get("vpeft_core")
        if core is not None:
            q, k, v = core(q, k, v)
        biases = [] if self.relative_position_bias_table is None else [self._get_rel_pos_bias()]
        biases += [] if shared_rel_pos_bias is None else [shared_rel_pos_bias]
        carrier: Any = self.__dict__.get("vpeft_carrier")
        biases = [widened(bias, count, k.shape[2], carrier.prefix if carrier else 0) for bias in biases]
        mapped = core is not None and core.needs_map
        if self.fused_attn and not mapped:
            bias = None if not biases else biases[0] if len(biases) == 1 else biases[0] + biases[1]
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            scores = core.scores(scores) if mapped else scores
            for bias in biases:
                scores = scores + bias
            weights = scores.softmax(dim=-1)
            x = self.attn_drop(core.weights(weights) if mapped else weights) @ v
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, count, -1)))
        return out


@family("timm_beit", "timm.models.beit.Beit")
def describe_timm_beit(model: nn.Module) -> Backbone:
    """timm BEiT and BEiT v2: relative position bias of each block or of all, LayerScale, plain or gated MLP."""
    beit: Any = model
    prefix, stride = int(beit.num_prefix_tokens), int(beit.patch_embed.patch_size[0])
    carrier, grid = TokenCarrier(prefix), tuple(beit.patch_embed.grid_size)
    placed = beit.rel_pos_bias is not None
    blocks = [
        _block(index, module, Where(index, Layout.TOKENS, grid, prefix, stride), carrier, placed)
        for index, module in enumerate(beit.blocks)
    ]
    return isotropic("timm_beit", model, blocks, carrier, Point(beit.pos_drop, "output"))


def _block(index: int, module: Any, where: Where, carrier: TokenCarrier, placed: bool) -> Block:
    """`placed`: whether a bias for relative positions comes from outside the block."""
    kind: type = type(module)
    if kind is not BeitBlock:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_beit describes BEiT's Block.")
    name, width = f"blocks.{index}", int(module.norm1.weight.shape[0])
    gains: list[Gain] = [(module, key) if getattr(module, key) is not None else None for key in ("gamma_1", "gamma_2")]
    placed = placed or module.attn.relative_position_bias_table is not None
    return residual_block(
        index,
        module,
        _attention(f"{name}.attn", module.attn, where, width),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
        where,
        carrier,
        gains=(gains[0], gains[1]),
        rewrites=token_rewrites(((module.attn, EditedBeitAttention),) if placed else ()),
    )


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    parts = fused_places(name, module, EditedBeitAttention, where)
    third = parts["q"].width
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    parts["core"] = attention_core(f"{name}.core", module, EditedBeitAttention, where, third, module.num_heads)
    enter, exit = Point(module, "input"), Point(module, "output")
    reads = (parts["qkv"],)
    own = other_parameters(module)
    return site(name, AttentionSite, enter, exit, where, width, parts, own, reads)  # type: ignore[arg-type]
