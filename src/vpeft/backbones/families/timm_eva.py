"""timm's EVA and its relatives: EVA-02, DINOv3, Perception Encoder, ViTs with rotary positions, Sapiens 2."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone
from ..blocks import AttentionSite, Block
from ..builders import Where, attention_core, norm, projection, site, token_rewrites
from ..describe import UnknownBackbone, family
from ..functional_qkv import fused_places, fused_qkv, other_parameters
from ..places import Place, Projection
from ..points import Layout, Point
from ..timm_isotropic import Gain, isotropic, residual_block
from ..tokens import TokenCarrier
from .timm_vit import mlp_places


def _turned(attention: Any, heads: Tensor, rope: Tensor) -> Tensor:
    """Rotate the last tokens, for which there are positions: (B, h, N, d), rope (..., n, 2d) with n <= N."""
    still = heads.shape[2] - rope.shape[-2]  # class token, registers and inserted tokens have no position
    moved = apply_rot_embed_cat(heads[:, :, still:, :], rope, half=getattr(attention, "rotate_half", False))
    return torch.cat([heads[:, :, :still, :], moved], dim=2)


def _attend(attention: Any, x: Tensor, qkv: Tensor | None, rope: Tensor | None, mask: Tensor | None) -> Tensor:
    """timm's steps from q, k and v on, with edits between them and their use; (B, N, D) -> (B, N, D).

    qkv is (B, N, 3E), or None where three projections make q, k and v. Further keys and values join behind the
    rotation, so that they have no position, and are open to every query.
    """
    batch, count, _ = x.shape
    gate = attention.gate(x).sigmoid() if attention.gate is not None else None
    if qkv is not None:
        q, k, v = qkv.reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        made = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
        q, k, v = (part.reshape(batch, count, -1, attention.head_dim).transpose(1, 2) for part in made)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        q, k = (_turned(attention, part, rope).type_as(v) for part in (q, k))
    if q.shape[1] > k.shape[1]:  # several heads of queries share one of keys
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    core: Any = attention.__dict__.get("vpeft_core")
    if core is not None:
        q, k, v = core(q, k, v)
    if mask is not None and k.shape[2] > count:
        mask = F.pad(mask, (k.shape[2] - count, 0), value=True if mask.dtype == torch.bool else 0.0)
    mapped = core is not None and core.needs_map
    if attention.fused_attn and not mapped:
        dropout = attention.attn_drop.p if attention.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        scores = (q * attention.scale) @ k.transpose(-2, -1)
        scores = core.scores(scores) if mapped else scores
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        weights = scores.softmax(dim=-1)
        x = attention.attn_drop(core.weights(weights) if mapped else weights) @ v
    x = attention.norm(x.transpose(1, 2).reshape(batch, count, -1))
    out: Tensor = attention.proj_drop(attention.proj(x if gate is None else x * gate))
    return out


def _causal(mask: Tensor | None, is_causal: bool, x: Tensor) -> Tensor | None:
    """The mask that `is_causal` stands for, (N, N), True where a query may look."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril() if is_causal else mask


class EditedEvaAttention(EvaAttention):
    """EVA's attention with edits at and between its projections, and with inserted tokens; bit-equal without."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        qkv = fused_qkv(self, x) if self.qkv is not None else None
        return _attend(self, x, qkv, rope, _causal(attn_mask, is_causal, x))


class EditedRopeAttention(AttentionRope):
    """The same for timm's `AttentionRope`, which calls its projections, and may share keys between heads."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        qkv = self.qkv(x) if self.qkv is not None else None
        return _attend(self, x, qkv, rope, _causal(attn_mask, is_causal, x))


EDITED_ATTENTION: dict[type[nn.Module], type[nn.Module]] = {
    EvaAttention: EditedEvaAttention,
    AttentionRope: EditedRopeAttention,
    EditedEvaAttention: EditedEvaAttention,  # a model that is described while edits are on it
    EditedRopeAttention: EditedRopeAttention,
}


@family("timm_eva", "timm.models.eva.Eva")
def describe_timm_eva(model: nn.Module) -> Backbone:
    """timm Eva: EVA-02, DINOv3, Perception Encoder; fused or separate qkv, rotary positions, plain or gated MLP."""
    eva: Any = model
    prefix, stride = int(eva.num_prefix_tokens), int(eva.patch_embed.patch_size[0])
    carrier, grid = TokenCarrier(prefix), tuple(eva.patch_embed.grid_size)
    blocks = [
        _block(index, module, Where(index, Layout.TOKENS, grid, prefix, stride), carrier, eva.rope is not None)
        for index, module in enumerate(eva.blocks)
    ]
    embedded = Point(eva.norm_pre, "output")
    return isotropic("timm_eva", model, blocks, carrier, embedded, dynamic=bool(eva.dynamic_img_size))


def _block(index: int, module: Any, where: Where, carrier: TokenCarrier, rotated: bool) -> Block:
    attention: Any = getattr(module, "attn", None)
    if type(module) not in (EvaBlock, EvaBlockPostNorm) or type(attention) not in EDITED_ATTENTION:
        raise UnknownBackbone(
            f"blocks.{index} is a {type(module).__name__} with {type(attention).__name__}; timm_eva describes EvaBlock"
            " and EvaBlockPostNorm with EvaAttention or AttentionRope."
        )
    name, width, post = f"blocks.{index}", int(module.norm1.weight.shape[0]), isinstance(module, EvaBlockPostNorm)
    scales = (getattr(module, key, None) is not None for key in ("gamma_1", "gamma_2"))
    pair = (attention, EDITED_ATTENTION[type(attention)])
    gains: list[Gain] = [(module, f"gamma_{number}") if there else None for number, there in enumerate(scales, 1)]
    return residual_block(
        index,
        module,
        _attention(f"{name}.attn", attention, where, width),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
        where,
        carrier,
        post=post,
        gains=(gains[0], gains[1]),
        rewrites=token_rewrites((pair,) if rotated else ()),
    )


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    kind = EDITED_ATTENTION[type(module)]
    if module.qkv is not None:
        parts = fused_places(name, module, kind, where)
        reads = [parts["qkv"]]
    else:
        parts = {letter: projection(f"{name}.{letter}", getattr(module, f"{letter}_proj"), where) for letter in "qkv"}
        reads = list(parts.values())
    heads = module.num_heads
    core = attention_core(f"{name}.core", module, kind, where, parts["q"].width, heads)
    more: dict[str, Place] = {"proj": projection(f"{name}.proj", module.proj, where)}
    for inner in ("q_norm", "k_norm", "norm"):
        layer = getattr(module, inner)
        if not isinstance(layer, nn.Identity):
            more[inner] = norm(f"{name}.{inner}", layer, where, int(layer.weight.shape[0]))
    more["core"] = core
    if module.gate is not None:
        more["gate"] = projection(f"{name}.gate", module.gate, where)
        reads.append(more["gate"])
    consumers = tuple(part for part in reads if isinstance(part, Projection))
    enter, exit = Point(module, "input"), Point(module, "output")
    own = other_parameters(module)
    every = {**parts, **more}
    return site(name, AttentionSite, enter, exit, where, width, every, own, consumers)
