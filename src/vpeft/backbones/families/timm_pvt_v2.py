"""timm's Pyramid Vision Transformer v2: four stages of tokens, keys and values from a coarser grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.pvt_v2 import Block as PvtBlock
from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite, Stage
from ..builders import Where, attention_core, norm, projection, site
from ..convolutional_net import image_size
from ..describe import UnknownBackbone, family
from ..places import Place, Projection
from ..points import Layout, Point
from ..timm_isotropic import architecture, own_classifier, pooled_by_head, residual_block
from .timm_vit import attend


class EditedPvtAttention(PvtAttention):
    """timm's attention with edits between q, k, v and their use; bit-equal without."""

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, self.num_heads, -1).permute(0, 2, 1, 3)
        if self.sr is not None:
            grid = x.permute(0, 2, 1).reshape(batch, width, *feat_size)
            pooled: Tensor = grid if self.pool is None else self.pool(grid)
            x = cast(Any, self.norm)(self.sr(pooled).reshape(batch, width, -1).permute(0, 2, 1))
            x = x if self.act is None else self.act(x)
        kv = self.kv(x).reshape(batch, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        x = attend(self, q, *kv.unbind(0))
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, count, width)))
        return out


class NextPatches(nn.Module):
    """The frozen way from one stage's tokens to the next one's: norm, map, overlapping patches, tokens.

    It holds the backbone's live modules without being their parent, so that they are no part of what holds it.
    """

    def __init__(self, norm: nn.Module, patches: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.inner, self.grid = (norm, patches), grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N', C')."""
        normed, patches = self.inner
        mapped = normed.forward(x).unflatten(1, self.grid).permute(0, 3, 1, 2)
        out: Tensor = patches.forward(mapped)
        return out.flatten(1, 2)


@family("timm_pvt_v2", "timm.models.pvt_v2.PyramidVisionTransformerV2")
def describe_timm_pvt_v2(model: nn.Module) -> Backbone:
    """timm PVT v2: overlapping patches, keys and values from a reduced grid, a depthwise convolution in the MLP."""
    net: Any = model
    size, start = image_size(model), 0
    stages: list[Stage] = []
    for number, layer in enumerate(net.stages):
        stride = int(net.feature_info[number]["reduction"])
        grid = (-(-size[0] // stride), -(-size[1] // stride))
        stage = _stage(number, layer, Where(start, Layout.TOKENS, grid, 0, stride), number == len(net.stages) - 1)
        if stages:
            stage.downsample = NextPatches(net.stages[number - 1].norm, layer.downsample, stages[-1].cells)
        stages.append(stage)
        start += len(layer.blocks)
    first, last = stages[0], stages[-1]
    mapped = Where(-1, Layout.MAP, first.grid, 0, first.stride)
    embedding = outline.embedding(first.enter, mapped.but(Layout.TOKENS), first.width, nesting=-1)
    trunk = outline.trunk(stages)
    after = Where(start, Layout.TOKENS, last.grid, 0, last.stride)
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_pvt_v2",
            library="timm",
            architecture=architecture(model),
            image_size=size,
            depth=start,
            width=int(net.num_features),
            prefix_tokens=0,
            pooling=net.global_pool,
            dynamic_size=True,
            keeps_batch=True,
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(net.patch_embed, "input"), int(net.patch_embed.proj.weight.shape[1])),
        trunk=trunk,
        stages=stages,
        norm=norm("norm", net.stages[-1].norm, after, last.width),
        others=[
            projection("patch", net.patch_embed.proj, mapped.but(Layout.CHANNELS_FIRST)),
            norm("patch_norm", net.patch_embed.norm, mapped, first.width),
            embedding,
        ],
        pooled=pooled_by_head,
        classifier=own_classifier,
        no_tokens="its keys and values come from a convolution over the grid, and its MLPs convolve over the grid too",
    )


def _stage(number: int, layer: Any, where: Where, last: bool) -> Stage:
    """One stage with the overlapping patches before it; the norm behind it belongs to it, but for the last."""
    blocks = [
        _block(where.depth + at, number, module, Where(where.depth + at, where.layout, where.grid, 0, where.stride))
        for at, module in enumerate(layer.blocks)
    ]
    parts: dict[str, Place] = {}
    if layer.downsample is not None:
        prefix, before = f"stages.{number}.downsample", Where(where.depth - 1, Layout.MAP, where.grid, 0, where.stride)
        reduction = projection(f"{prefix}.reduction", layer.downsample.proj, before.but(Layout.CHANNELS_FIRST))
        own = norm(f"{prefix}.norm", layer.downsample.norm, before, reduction.width)
        parts |= {reduction.name: reduction, own.name: own}
    parts |= {block.name: block for block in blocks}
    if not last:
        behind = Where(blocks[-1].depth, Layout.TOKENS, where.grid, 0, where.stride)
        parts[f"stages.{number}.norm"] = norm(f"stages.{number}.norm", layer.norm, behind, blocks[-1].width)
    return outline.stage(number, blocks, where, parts)


def _block(index: int, stage: int, module: Any, where: Where) -> Block:
    kind: type = type(module)
    if kind is not PvtBlock:
        raise UnknownBackbone(f"blocks.{index} is a {kind.__name__}; timm_pvt_v2 describes the Block of PVT v2.")
    name, width = f"blocks.{index}", int(module.norm1.weight.shape[0])
    attn = reduced_attention(f"{name}.attn", module.attn, where, width, EditedPvtAttention)
    block = residual_block(index, module, attn, _mlp(f"{name}.mlp", module.mlp, where, width), where, None)
    block.stage = stage
    return block


def reduced_attention(name: str, module: Any, where: Where, width: int, edited: type[nn.Module]) -> AttentionSite:
    """`kv` is fused; where it reads a reduced grid, `sr` and `norm` make that, and the core lies on no common grid.

    `edited` stands in for the attention while edits act between q, k and v.
    """
    reduced, grid = where, where.grid
    parts: dict[str, Place] = {"q": projection(f"{name}.q", module.q, where)}
    if module.sr is not None:
        assert grid is not None
        ratio = int(module.sr.stride[0])
        small = Where(where.depth, where.layout, (grid[0] // ratio, grid[1] // ratio), 0, where.stride * ratio)
        reduced = small if getattr(module, "pool", None) is None else small.within((7, 7))
        grid = None
        parts["sr"] = projection(f"{name}.sr", module.sr, reduced.but(Layout.CHANNELS_FIRST))
        parts["norm"] = norm(f"{name}.norm", module.norm, reduced, width)
    kv = projection(f"{name}.kv", module.kv, reduced)
    parts["kv"] = kv
    for letter, rows in (("k", (0, width)), ("v", (width, 2 * width))):
        parts[letter] = projection(f"{name}.{letter}", module.kv, reduced, rows)
    parts["proj"] = projection(f"{name}.proj", module.proj, where)
    parts["core"] = attention_core(
        f"{name}.core", module, edited, replace(where, grid=grid), width, int(module.num_heads)
    )
    reads = (parts["q"], kv) if module.sr is None else ()
    consumers = tuple(part for part in reads if isinstance(part, Projection))
    ends = (Point(module, "input"), Point(module, "output"))
    return site(name, AttentionSite, *ends, where, width, parts, None, consumers)


def _mlp(name: str, module: Any, where: Where, width: int) -> MlpSite:
    """Between the two linears a depthwise convolution of the map: `conv`."""
    fc1 = projection(f"{name}.fc1", module.fc1, where)
    conv = projection(f"{name}.conv", module.dwconv, where.but(Layout.CHANNELS_FIRST))
    parts: dict[str, Place] = {"fc1": fc1, "conv": conv, "fc2": projection(f"{name}.fc2", module.fc2, where)}
    ends = (Point(module, "input"), Point(module, "output"))
    return site(name, MlpSite, *ends, where, width, parts, None, (fc1,))
