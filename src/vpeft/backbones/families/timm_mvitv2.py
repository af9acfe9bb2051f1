"""timm's MViTv2: attention whose queries, keys and values are pooled by convolutions of each head's map.

A block that changes the width, or pools its queries, belongs to the downsampling before the blocks of its stage, so
that every block keeps its shape. Tokens cannot be inserted: the pooling lays all but the class token out as a map.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.models.mvitv2 import (
    MultiScaleAttention,
    MultiScaleBlock,
    cal_rel_pos_type,
    reshape_post_pool,
    reshape_pre_pool,
)
from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block
from ..builders import Where, norm, projection
from ..convolutional import Size, norm_width
from ..convolutional_net import image_size
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point
from ..staged import BlockMaker, Passage, lay_out
from ..timm_isotropic import architecture, own_classifier, pooled_by_head, residual_block
from .timm_vit import attention_places, mlp_places


class EditedPooledAttention(MultiScaleAttention):
    """timm's attention with edits between the pooled q, k, v and their use; bit-equal without.

    Further keys come first and have no position (bias 0).
    """

    def forward(self, x: Tensor, feat_size: list[int]) -> tuple[Tensor, list[int]]:
        batch, count, _ = x.shape
        made = self.qkv(x).reshape(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(dim=0)
        parts, sizes = [], []
        for letter, part in zip("qkv", made, strict=True):
            pool, after, size = getattr(self, f"pool_{letter}"), getattr(self, f"norm_{letter}"), feat_size
            if pool is not None:
                part, token = reshape_pre_pool(part, feat_size, self.has_cls_token)
                part, size = reshape_post_pool(pool(part), self.num_heads, token)
            parts.append(part if after is None else after(part))
            sizes.append(size)
        core: Any = self.vpeft_core
        keys = parts[1].shape[2]
        q, k, v = core(*parts)
        scores = core.scores((q * self.scale) @ k.transpose(-2, -1))
        if self.rel_pos_type == "spatial":
            further = k.shape[2] - keys
            own = scores[..., further:].clone() if further else scores
            own = cal_rel_pos_type(own, q, self.has_cls_token, *sizes[:2], self.rel_pos_h, self.rel_pos_w)
            scores = torch.cat([scores[..., :further], own], dim=-1) if further else own
        x = core.weights(scores.softmax(dim=-1)) @ v
        x = x + q if self.residual_pooling else x
        out: Tensor = self.proj(x.transpose(1, 2).reshape(batch, -1, self.dim_out))
        return out, sizes[0]


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    MultiScaleAttention: EditedPooledAttention,
    EditedPooledAttention: EditedPooledAttention,
}


class OfSize(nn.Module):
    """A block as a function of its tokens; it holds the live block without being its parent."""

    def __init__(self, block: nn.Module, size: Size) -> None:
        super().__init__()
        self.inner, self.size = (block,), list(size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner[0].forward(x, self.size)[0]
        return out


@family("timm_mvitv2", "timm.models.mvitv2.MultiScaleVit")
def describe_timm_mvitv2(model: nn.Module) -> Backbone:
    """timm MViTv2: pooled attention with decomposed relative positions, with or without a class token."""
    net: Any = model
    patch, size, prefix = net.patch_embed.proj, image_size(model), int(net.num_prefix_tokens)
    stride = int(patch.stride[0])
    grid = (size[0] // stride, size[1] // stride)
    steps: list[Passage | BlockMaker] = []
    for module in (block for stage in net.stages for block in stage.blocks):
        step, pool = _step(module, grid)
        steps.append(step)
        grid = (-(-grid[0] // pool), -(-grid[1] // pool))
    made = lay_out(steps, size, stride, Layout.TOKENS, prefix=prefix)
    first, last, depth = made.stages[0], made.stages[-1], made.where.depth
    start = Where(-1, Layout.TOKENS, (size[0] // stride, size[1] // stride), prefix, stride)
    own = {name: (model, name) for name in ("cls_token", "pos_embed") if model._parameters.get(name) is not None}
    entering = Point(net.stages[0].blocks[0], "input")
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_mvitv2",
            library="timm",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=int(net.num_features),
            prefix_tokens=prefix,
            pooling=net.global_pool,
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(net.patch_embed, "input"), int(patch.in_channels)),
        trunk=outline.trunk(made.stages, first.width, last.width, enter=entering),
        stages=made.stages,
        norm=norm("norm", net.norm, Where(depth, Layout.TOKENS, last.grid, prefix, last.stride), norm_width(net.norm)),
        others=[
            projection("patch", patch, start.but(Layout.CHANNELS_FIRST, prefix=0)),
            outline.embedding(entering, start, int(patch.out_channels), own=own, nesting=-1),
            *made.tail,
        ],
        pooled=pooled_by_head,
        classifier=own_classifier,
        end=None if made.behind is None else Point(made.behind, "input"),
    )


def _step(module: Any, grid: Size) -> tuple[Passage | BlockMaker, int]:
    """A block, or what pools its queries or changes the width, and by how much it divides the grid."""
    kind, attention = cast(type, type(module)), cast(type, type(getattr(module, "attn", None)))
    if kind is not MultiScaleBlock or attention not in KINDS:
        raise UnknownBackbone(
            f"One block is a {kind.__name__} with {attention.__name__}; timm_mvitv2 describes only MultiScaleBlock with"
            " MultiScaleAttention."
        )
    pool = 1 if module.shortcut_pool_attn is None else int(module.shortcut_pool_attn.stride[0])
    if pool > 1 or module.dim != module.dim_out:
        return Passage(OfSize(module, grid), lambda name, where: _pooling(name, module, where), pool), pool

    def make(index: int, stage: int, where: Where) -> Block:
        name, width = f"blocks.{index}", norm_width(module.norm1)
        attn = _attention(f"{name}.attn", module.attn, where, width)
        return residual_block(index, module, attn, mlp_places(f"{name}.mlp", module.mlp, where, width), where, None)

    return make, pool


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    """With the poolings that have weights; they see the heads of an image as rows of the batch."""
    attn = attention_places(name, module, where, width, KINDS)
    last = {key: attn.parts.pop(key) for key in ("proj", "core")}
    attn.parts |= {**_pools(name, module, where), **last}
    core, pool = attn.core, module.pool_k
    if pool is not None and max(pool.stride if isinstance(pool.stride, tuple) else (pool.stride,)) > 1:
        core.grid, core.reduced = None, True
    return attn


def _pools(name: str, module: Any, where: Where) -> dict[str, Place]:
    parts: dict[str, Place] = {}
    for letter in "qkv":
        pool, after = getattr(module, f"pool_{letter}"), getattr(module, f"norm_{letter}")
        if isinstance(pool, nn.Conv2d):
            parts[f"{letter}_pool"] = projection(
                f"{name}.{letter}_pool", pool, where.but(Layout.CHANNELS_FIRST, prefix=0)
            )
        if after is not None:
            parts[f"{letter}_norm"] = norm(f"{name}.{letter}_norm", after, where, norm_width(after))
    return parts


def _pooling(name: str, module: Any, where: Where) -> dict[str, Place]:
    """Norms and projections of a block that pools or widens; `reduction` makes its shortcut, if a linear map does."""
    qkv, fc1 = (
        projection(f"{name}.attn.qkv", module.attn.qkv, where),
        projection(f"{name}.mlp.fc1", module.mlp.fc1, where),
    )
    widens, expands = module.shortcut_proj_attn, module.shortcut_proj_mlp
    width = norm_width(module.norm1)
    parts: dict[str, Place] = {
        "norm1": norm(f"{name}.norm1", module.norm1, where, width, (qkv,) if widens is None else ()),
        "qkv": qkv,
        **_pools(f"{name}.attn", module.attn, where),
        "proj": projection(f"{name}.attn.proj", module.attn.proj, where),
        "norm2": norm(
            f"{name}.norm2", module.norm2, where, norm_width(module.norm2), (fc1,) if expands is None else ()
        ),
        "fc1": fc1,
        "fc2": projection(f"{name}.mlp.fc2", module.mlp.fc2, where),
    }
    shortcut = widens if widens is not None else expands
    if shortcut is not None:
        parts["reduction"] = projection(f"{name}.reduction", shortcut, where)
    return parts
