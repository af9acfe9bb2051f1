"""timm's Hiera: mask units in the order in which they are pooled, so a sequence without rows and columns.

A block that changes the width pools its queries and its shortcut; it belongs to the downsampling before the blocks of
its stage, so that every block keeps its shape. Heads read what leaves a block or a stage as a map: the library's own
way back from mask units tells the cell of each token. Tokens and maps have no place between units of fixed size.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from timm.models.hiera import HieraBlock, MaskUnitAttention
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block
from ..builders import Where, norm, projection
from ..convolutional import norm_width
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point
from ..staged import BlockMaker, Passage, lay_out
from ..timm_isotropic import architecture, layer_scales, own_classifier, pooled_by_head, residual_block
from .timm_vit import attention_places, mlp_places


class EditedMaskUnitAttention(MaskUnitAttention):
    """timm's attention within mask units or over all tokens, with edits between q, k, v and their use.

    Bit-equal to it without edits. Within units, edits see a unit of an image as one row of the batch. Only blocks that
    do not pool are edited so.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        core: Any = self.vpeft_core
        if self.use_mask_unit_attn:
            units = count // self.window_size
            qkv = self.qkv(x).reshape(batch, -1, units, 3, self.heads, self.head_dim).permute(3, 0, 4, 2, 1, 5)
            rows = core(*(part.transpose(1, 2).flatten(0, 1) for part in qkv.unbind(0)))
            q, k, v = (part.unflatten(0, (batch, units)).transpose(1, 2) for part in rows)
        else:
            qkv = self.qkv(x).reshape(batch, count, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = (part.contiguous() for part in core(*qkv.unbind(0)))
        if self.fused_attn and not core.needs_map:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * self.scale) @ k.transpose(-1, -2)
            if self.use_mask_unit_attn:
                flat = core.scores(scores.transpose(1, 2).flatten(0, 1)).softmax(dim=-1)
                weights = core.weights(flat).unflatten(0, (batch, -1)).transpose(1, 2)
            else:
                weights = core.weights(core.scores(scores).softmax(dim=-1))
            x = weights @ v
        x = x.transpose(1, 3 if self.use_mask_unit_attn else 2).reshape(batch, -1, self.dim_out)
        out: Tensor = self.proj(x)
        return out


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    MaskUnitAttention: EditedMaskUnitAttention,
    EditedMaskUnitAttention: EditedMaskUnitAttention,
}


@family("timm_hiera", "timm.models.hiera.Hiera")
def describe_timm_hiera(model: nn.Module) -> Backbone:
    """timm Hiera: attention within mask units, then over all tokens; queries are pooled between the stages."""
    net: Any = model
    patch, stride = net.patch_embed.proj, int(net.patch_stride[-1])
    if not isinstance(patch, nn.Conv2d):
        raise UnknownBackbone(f"{architecture(model)} takes clips; timm_hiera describes Hiera on images.")
    size = tuple(side * step for side, step in zip(net.tokens_spatial_shape, net.patch_stride, strict=True))
    steps = [_step(module, int(net.q_stride[0])) for module in net.blocks]
    made = lay_out(steps, size, stride, Layout.TOKENS, ordered=False)
    if made.behind is not None:
        raise UnknownBackbone("The last stage of this Hiera only pools, so it has no block that could be adapted.")
    first, last, depth = made.stages[0], made.stages[-1], made.where.depth
    tokens = Where(-1, Layout.TOKENS, None, 0, stride)
    positions = ("pos_embed", "pos_embed_win", "pos_embed_spatial", "pos_embed_temporal")
    own = {name: (model, name) for name in positions if model._parameters.get(name) is not None}
    for one in (place for stage in made.stages for place in (stage, *stage.blocks)):
        one.arrangement = _arrangement(net, one.exit)
    final = net.head.norm
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_hiera",
            library="timm",
            architecture=architecture(model),
            image_size=(int(size[0]), int(size[1])),
            depth=depth,
            width=int(net.head_hidden_size),
            prefix_tokens=0,
            pooling="avg",
        ),
        pixels=outline.pixels(Point(net.patch_embed, "input"), int(patch.in_channels)),
        trunk=outline.trunk(made.stages),
        stages=made.stages,
        norm=None if isinstance(final, nn.Identity) else norm("norm", final, Where(depth, Layout.VECTOR), last.width),
        others=[
            projection("patch", patch, tokens.but(Layout.CHANNELS_FIRST)),
            outline.embedding(Point(net.unroll, "output"), tokens, first.width, own=own),
        ],
        pooled=pooled_by_head,
        classifier=own_classifier,
        end=Point(net.head, "input"),
    )


def _arrangement(net: Any, exit: Point | None) -> Tensor | None:
    """(H, W): which token lies at each cell behind a block, by the library's own way back from mask units."""
    index = next((number for number, block in enumerate(net.blocks) if exit is not None and block is exit.module), None)
    if index is None:
        return None
    _, size = net.reroll.schedule[index]
    numbers = net.reroll(torch.arange(prod(size), device="cpu")[None, :, None], index)
    found: Tensor = numbers[0, ..., 0]
    return found


def _step(module: Any, pool: int) -> Passage | BlockMaker:
    kind: type = type(module)
    if kind is not HieraBlock:
        raise UnknownBackbone(f"One block is a {kind.__name__}; timm_hiera describes only HieraBlock.")
    if module.do_expand:
        return Passage(
            module, lambda name, where: _widening(name, module, where), pool if module.attn.q_stride > 1 else 1
        )

    def make(index: int, stage: int, where: Where) -> Block:
        name, width = f"blocks.{index}", norm_width(module.norm1)
        attn = attention_places(f"{name}.attn", module.attn, where, width, KINDS)
        attn.core.per_window = bool(module.attn.use_mask_unit_attn)
        mlp = mlp_places(f"{name}.mlp", module.mlp, where, width)
        return residual_block(index, module, attn, mlp, where, None, gains=layer_scales(module), steps=True)

    return make


def _widening(name: str, module: Any, where: Where) -> dict[str, Place]:
    """Norms and projections of a block that pools; `reduction` makes its shortcut, where it is no pooling alone."""
    read = Where(where.depth, where.layout, None, 0, where.stride)
    qkv, fc1 = (
        projection(f"{name}.attn.qkv", module.attn.qkv, read),
        projection(f"{name}.mlp.fc1", module.mlp.fc1, where),
    )
    parts: dict[str, Place] = {"norm1": norm(f"{name}.norm1", module.norm1, read, int(module.dim))}
    if module.proj is not None:
        parts["reduction"] = projection(f"{name}.reduction", module.proj, read)
    parts |= {
        "qkv": qkv,
        "proj": projection(f"{name}.attn.proj", module.attn.proj, where),
        "norm2": norm(f"{name}.norm2", module.norm2, where, int(module.dim_out), (fc1,)),
        "fc1": fc1,
        "fc2": projection(f"{name}.mlp.fc2", module.mlp.fc2, where),
    }
    return parts
