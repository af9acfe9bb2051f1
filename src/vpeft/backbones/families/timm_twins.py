"""timm's Twins: attention within windows and attention with keys from a coarser grid, in turn.

Behind the first block of each stage a depthwise convolution tells positions: `stages.N.between.conv`. It and the
windows need the whole grid and nothing else, so that tokens cannot be inserted.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models.twins import Block as TwinsBlock
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block
from ..builders import Where, norm, projection
from ..convolutional import norm_width
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point, StandIn
from ..staged import BlockMaker, Passage, lay_out
from ..timm_isotropic import architecture, own_classifier, pooled_by_head, residual_block
from .timm_pvt_v2 import reduced_attention
from .timm_vit import attention_places, mlp_places


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, N, d) each, edited by now -> (B, heads, N, d)."""
    core: Any = attention.__dict__.get("vpeft_core")
    if attention.fused_attn and (core is None or not core.needs_map):
        dropout = attention.attn_drop.p if attention.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    scores = (q * attention.scale) @ k.transpose(-2, -1)
    weights = (scores if core is None else core.scores(scores)).softmax(dim=-1)
    mixed: Tensor = attention.attn_drop(weights if core is None else core.weights(weights)) @ v
    return mixed


class EditedLocalAttention(LocallyGroupedAttn):
    """timm's attention within windows, each a row of the batch for `qkv` and for edits between q, k and v.

    Bit-equal to it without edits.
    """

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, count, width = x.shape
        (height, across), side = size, self.ws
        x = F.pad(x.view(batch, height, across, width), (0, 0, 0, -across % side, 0, -height % side))
        down, wide = x.shape[1] // side, x.shape[2] // side
        rows = x.reshape(batch, down, side, wide, side, width).transpose(2, 3).reshape(-1, side * side, width)
        made = self.qkv(rows).reshape(batch, down * wide, side * side, 3, self.num_heads, width // self.num_heads)
        q, k, v = made.permute(3, 0, 1, 4, 2, 5).unbind(0)
        core: Any = self.__dict__.get("vpeft_core")
        if core is not None:
            edited = core(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
            q, k, v = (part.reshape(batch, down * wide, *part.shape[1:]) for part in edited)
        if core is not None and core.needs_map:
            rows = _attend(self, q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
            mixed = rows.reshape(batch, down * wide, *rows.shape[1:])
        elif self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            mixed = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        x = mixed.transpose(2, 3).reshape(batch, down, wide, side, side, width)
        x = x.transpose(2, 3).reshape(batch, down * side, wide * side, width)[:, :height, :across]
        out: Tensor = self.proj_drop(self.proj(x.reshape(batch, count, width)))
        return out


class EditedGlobalAttention(GlobalSubSampleAttn):
    """timm's attention with keys from a coarser grid, with edits between q, k, v and their use; bit-equal without."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        batch, count, width = x.shape
        q = self.q(x).reshape(batch, count, self.num_heads, width // self.num_heads).permute(0, 2, 1, 3)
        if self.sr is not None:
            mapped = x.permute(0, 2, 1).reshape(batch, width, *size)
            x = cast(Any, self.norm)(self.sr(mapped).reshape(batch, width, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(batch, -1, 2, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        core: Any = self.vpeft_core
        mixed = _attend(self, *core(q, *kv.unbind(0)))
        out: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, count, width)))
        return out


class NextPatches(nn.Module):
    """The patches between two stages as a function of the tokens; it holds the live module without being its parent."""

    def __init__(self, patches: nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.inner, self.grid = (patches,), grid

    def forward(self, x: Tensor) -> Tensor:
        mapped = x.reshape(x.shape[0], *self.grid, -1).permute(0, 3, 1, 2).contiguous()
        out: Tensor = self.inner[0].forward(mapped)[0]
        return out


@family("timm_twins", "timm.models.twins.Twins")
def describe_timm_twins(model: nn.Module) -> Backbone:
    """timm Twins: PCPVT, whose keys all come from a coarser grid, and SVT, with windows in every other block."""
    net: Any = model
    first, size = net.patch_embeds[0], tuple(net.patch_embeds[0].img_size)
    stride, grid = int(first.patch_size[0]), (int(first.H), int(first.W))
    steps: list[Passage | BlockMaker] = []
    for number, (patches, blocks, positions) in enumerate(
        zip(net.patch_embeds, net.blocks, net.pos_block, strict=True)
    ):
        if number:
            steps.append(_patches(patches, grid))
            grid = (int(patches.H), int(patches.W))
        for at, block in enumerate(blocks):
            steps.append(_maker(block))
            if not at:
                steps.append(_positions(positions))
    made = lay_out(steps, (int(size[0]), int(size[1])), stride, Layout.TOKENS)
    last, depth = made.stages[-1], made.where.depth
    start = Where(-1, Layout.TOKENS, (int(first.H), int(first.W)), 0, stride)
    width0 = int(first.proj.out_channels)
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_twins",
            library="timm",
            architecture=architecture(model),
            image_size=(int(size[0]), int(size[1])),
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
            keeps_batch=True,
        ),
        pixels=outline.pixels(Point(first, "input"), int(first.proj.in_channels)),
        trunk=outline.trunk(made.stages),
        stages=made.stages,
        norm=norm("norm", net.norm, Where(depth, Layout.TOKENS, last.grid, 0, last.stride), last.width),
        others=[
            projection("patch", first.proj, start.but(Layout.CHANNELS_FIRST)),
            norm("patch_norm", first.norm, start, width0),
            outline.embedding(Point(net.pos_drops[0], "output"), start, width0),
        ],
        pooled=pooled_by_head,
        classifier=own_classifier,
        end=Point(net.norm, "input"),
    )


def _patches(module: Any, grid: tuple[int, int]) -> Passage:
    def places(name: str, where: Where) -> dict[str, Place]:
        reduction = projection(f"{name}.reduction", module.proj, where.but(Layout.CHANNELS_FIRST))
        return {"reduction": reduction, "norm": norm(f"{name}.norm", module.norm, where, reduction.width)}

    return Passage(NextPatches(module, grid), places, int(module.patch_size[0]))


def _positions(module: Any) -> Passage:
    def places(name: str, where: Where) -> dict[str, Place]:
        conv = projection(f"{name}.conv", module.proj[0], where.but(Layout.CHANNELS_FIRST))
        conv.exit = Point(module.proj[0], "output", overwritten=True)  # the map is added to it in place
        return {"conv": conv}

    return Passage(module, places, opens=False)


def _maker(module: Any) -> BlockMaker:
    kind, inner = cast(type, type(module)), cast(type, type(getattr(module, "attn", None)))
    local = inner in (LocallyGroupedAttn, EditedLocalAttention)
    if kind is not TwinsBlock or not (local or inner in (GlobalSubSampleAttn, EditedGlobalAttention)):
        raise UnknownBackbone(
            f"One block is a {kind.__name__} with {inner.__name__}; timm_twins describes only the Block of Twins with"
            " LocallyGroupedAttn or GlobalSubSampleAttn."
        )

    def make(index: int, stage: int, where: Where) -> Block:
        name, width = f"blocks.{index}", norm_width(module.norm1)
        if local:
            attn = _local(f"{name}.attn", module.attn, where, width)
        else:
            attn = reduced_attention(f"{name}.attn", module.attn, where, width, EditedGlobalAttention)
        return residual_block(index, module, attn, mlp_places(f"{name}.mlp", module.mlp, where, width), where, None)

    return make


def _local(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    side = int(module.ws)
    inside = where.within((side, side), Layout.TOKENS)
    kinds: dict[type[nn.Module], type[nn.Module]] = {type(module): EditedLocalAttention}
    attn = attention_places(name, module, inside, width, kinds, outer=where)
    needs = (StandIn(module, EditedLocalAttention),)
    for key in ("qkv", "q", "k", "v"):
        attn.parts[key].enter = Point(module.qkv, "input", needs=needs)
        attn.parts[key].exit = Point(module.qkv, "output", needs=needs)
    attn.parts["proj"] = projection(f"{name}.proj", module.proj, where)
    attn.core.per_window = True
    if any(cells % side for cells in where.grid or ()):
        attn.consumers = ()  # padded windows carry zeros that the norm's edits never see
    return attn
