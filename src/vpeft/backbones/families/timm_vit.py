"""timm's VisionTransformer: class token or not, registers, LayerScale, qk-norm, any pooling, dynamic image size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers.attention import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone
from ..blocks import AttentionSite, Block, MlpSite
from ..builders import Where, attention_core, norm, own_parameters, projection, site
from ..convolutional_net import stem_places
from ..describe import UnknownBackbone, family
from ..fused_qkv import fused_qkv
from ..places import Place
from ..points import Layout, Point
from ..rows import Rows
from ..timm_isotropic import architecture as architecture
from ..timm_isotropic import isotropic, layer_scales, residual_block
from ..tokens import TokenCarrier


def attend(
    attention: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """What the edits between q, k, v (B, h, N, d) and their use make of them, (B, h, N, d).

    `attn_mask` (N, N) is added to the scores, or True where a query may look; further keys are open to every query.
    `attention` has timm's `scale`, `attn_drop` and `fused_attn`.
    """
    core, count = attention.vpeft_core, k.shape[2]
    q, k, v = core(q, k, v)
    extra = k.shape[2] - count
    if is_causal:
        ones = torch.ones(count, count, dtype=torch.bool, device=q.device)
        attn_mask = torch.zeros(count, count, dtype=q.dtype, device=q.device).masked_fill(ones.triu(1), -torch.inf)
    if extra and attn_mask is not None:  # further keys come first
        attn_mask = F.pad(attn_mask, (extra, 0), value=True if attn_mask.dtype == torch.bool else 0.0)
    if attention.fused_attn and not core.needs_map:
        dropout = attention.attn_drop.p if attention.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
    scores = core.scores((q * attention.scale) @ k.transpose(-2, -1))
    if attn_mask is not None:
        closed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if closed else scores + attn_mask
    mixed: Tensor = attention.attn_drop(core.weights(scores.softmax(dim=-1))) @ v
    return mixed


class EditedAttention(TimmAttention):
    """timm's attention with edits between q, k, v and their use; bit-equal to it without edits."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = fused_qkv(self.qkv, x, self.num_heads, cast(Any, self.vpeft_core).asking)
        x = attend(self, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)
        # fewer queries than tokens where an edit keeps only some of them
        x = self.norm(x.transpose(1, 2).flatten(2))
        if gate is not None:
            x = x * gate
        out: Tensor = self.proj_drop(self.proj(x))
        return out


class LeadingBlock(TimmBlock):
    """timm's block for as many leading tokens as its attention answers; bit-equal to it where that is all of them."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        mixed = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        if mixed.shape[1] < x.shape[1]:
            x = x[:, : mixed.shape[1]]
        x = x + self.drop_path1(self.ls1(mixed))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out


# blocks of other classes than timm's usual two, each entered by the file that describes it
BLOCKS: dict[type[nn.Module], Callable[[int, Any, Where, TokenCarrier], Block]] = {}


@family("timm_vit", "timm.models.vision_transformer.VisionTransformer")
def describe_timm_vit(model: nn.Module) -> Backbone:
    """timm VisionTransformer and its relatives in that class (DeiT, MAE, CLIP, SigLIP, DINOv2 towers)."""
    vit: Any = model
    blocks, carrier = vit_blocks(model)
    embedded, patches = Point(vit.norm_pre, "output"), vit.patch_embed
    stem: list[Place] = []
    if isinstance(patches.proj, nn.Identity):  # a convolutional net makes the patches by itself
        stem, _ = stem_places((patches.backbone,), (int(patches.img_size[0]), int(patches.img_size[1])))
    return isotropic("timm_vit", model, blocks, carrier, embedded, dynamic=bool(vit.dynamic_img_size), patches=stem)


def vit_blocks(model: nn.Module) -> tuple[list[Block], TokenCarrier]:
    """The blocks of a ViT, and what carries tokens through them."""
    vit: Any = model
    prefix, stride = int(vit.num_prefix_tokens), int(vit.patch_embed.patch_size[0])
    carrier, grid = TokenCarrier(prefix), tuple(vit.patch_embed.grid_size)
    if hasattr(vit.patch_embed, "backbone"):  # patches of a net's map, not of the pixels
        stride = int(vit.patch_embed.img_size[0]) // int(grid[0])
    wheres = (Where(index, Layout.TOKENS, grid, prefix, stride) for index in range(len(vit.blocks)))
    blocks = [_block(index, *pair, carrier) for index, pair in enumerate(zip(vit.blocks, wheres, strict=True))]
    return blocks, carrier


def _block(index: int, module: Any, where: Where, carrier: TokenCarrier) -> Block:
    if type(module) in BLOCKS:
        return BLOCKS[type(module)](index, module, where, carrier)
    if type(module) not in (TimmBlock, ResPostBlock):
        raise UnknownBackbone(
            f"blocks.{index} is a {type(module).__name__}; timm_vit describes blocks of the classes Block,"
            f" ResPostBlock, {', '.join(sorted(kind.__name__ for kind in BLOCKS))}."
        )
    name, width = f"blocks.{index}", int(module.norm1.weight.shape[0])
    block = residual_block(
        index,
        module,
        attention_places(f"{name}.attn", module.attn, where, width),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
        where,
        carrier,
        post=isinstance(module, ResPostBlock),
        gains=layer_scales(module),
        steps=True,
    )
    if type(module) is TimmBlock:
        block.leading = ((module, LeadingBlock),)
    return block


def attention_places(
    name: str,
    module: Any,
    where: Where,
    width: int,
    kinds: dict[type[nn.Module], type[nn.Module]] | None = None,
    outer: Where | None = None,
    own: dict[str, tuple[nn.Module, str]] | None = None,
    by_head: bool = False,
) -> AttentionSite:
    """Places of an attention with timm's names: its fused qkv, the slices, the core and the output projection.

    Args:
        where: of the sequence that the projections see.
        kinds: the class that stands in for each class of attention while edits act between q, k and v.
        outer: of what enters and leaves the attention, if that is laid out differently.
        own: parameters of the attention itself, by default those that it holds directly.
        by_head: whether the fused rows lie head by head, each with its q, k and v.
    """
    kind = (kinds or {TimmAttention: EditedAttention, EditedAttention: EditedAttention}).get(type(module))
    qkv = projection(f"{name}.qkv", module.qkv, where)
    third, heads = qkv.width // 3, int(module.heads if hasattr(module, "heads") else module.num_heads)
    parts: dict[str, Place] = {"qkv": qkv}
    groups = heads if by_head else 1
    for offset, letter in enumerate("qkv"):
        rows = Rows(offset * third // groups, (offset + 1) * third // groups, groups)
        parts[letter] = projection(f"{name}.{letter}", module.qkv, where, rows)
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    for inner in ("q_norm", "k_norm", "norm"):
        layer = getattr(module, inner, None)
        if layer is not None and not isinstance(layer, nn.Identity):
            parts[inner] = norm(f"{name}.{inner}", layer, where, int(layer.weight.shape[0]))
    if kind is not None:
        parts["core"] = attention_core(f"{name}.core", module, kind, where, third, heads)
    gated = getattr(module, "gate", None) is not None
    if gated:
        parts["gate"] = projection(f"{name}.gate", module.gate, where)
    return site(
        name,
        AttentionSite,
        Point(module, "input"),
        Point(module, "output"),
        outer or where,
        width,
        parts,
        own_parameters(module) if own is None else own,
        () if gated else (qkv,),
    )


def mlp_places(name: str, module: Any, where: Where, width: int) -> MlpSite:
    """Places of a timm MLP: `fc1`, `fc2`, and the `gate` of a gated one that keeps it apart.

    A gated MLP that stores both halves in one `fc1` has them both under that name.
    """
    normed = not hasattr(module, "fc2")  # ViTamin's, whose norm comes first
    last = module.w2 if normed else module.fc2
    if normed:
        first = {"fc1": module.w1, "gate": module.w0}
    elif hasattr(module, "fc1_g"):
        first = {"fc1": module.fc1_x, "gate": module.fc1_g}
    else:
        first = {"fc1": module.fc1}
    readers = {key: projection(f"{name}.{key}", layer, where) for key, layer in first.items()}
    parts: dict[str, Place] = dict(readers)
    inner = getattr(module, "norm", None)
    if inner is not None and not isinstance(inner, nn.Identity):
        reads = tuple(readers.values()) if normed else ()
        parts["norm"] = norm(f"{name}.norm", inner, where, int(inner.weight.shape[0]), reads)
    parts["fc2"] = projection(f"{name}.fc2", last, where)
    consumers = () if normed else tuple(readers.values())
    return site(name, MlpSite, Point(module, "input"), Point(module, "output"), where, width, parts, None, consumers)
