"""timm's MaxxVit class: MaxViT and CoAtNet, with MBConv or ConvNeXt units between the attention blocks.

The blocks are the residual pairs of attention and MLP: in MaxViT those within windows and those over a dilated grid, in
CoAtNet those over the whole map. Units of convolutions, and attention that halves the map, are passages between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.models.maxxvit import (
    Attention2d,
    AttentionCl,
    ConvNeXtBlock,
    MaxxVitBlock,
    MbConvBlock,
    PartitionAttention2d,
    PartitionAttentionCl,
    TransformerBlock2d,
)
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block
from ..builders import Where, inner_parameters, norm, projection
from ..convolutional import Unit, conv_stride, norm_width
from ..convolutional_net import stem_places
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point
from ..staged import BlockMaker, Passage, convolutions, lay_out
from ..timm_isotropic import architecture, layer_scales, own_classifier, pooled_by_head, residual_block
from .timm_vit import attention_places, mlp_places


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor, shared: Tensor | None) -> Tensor:
    """Queries, keys and values (B, heads, N, d) -> (B, heads, N, d), with edits and a bias for relative positions.

    Further keys come first and have no position (bias 0).
    """
    count = k.shape[2]
    core: Any = attention.vpeft_core
    q, k, v = core(q, k, v)
    bias = shared if attention.rel_pos is None else attention.rel_pos.get_bias()
    if bias is not None and k.shape[2] > count:
        bias = F.pad(bias, (k.shape[2] - count, 0))
    if attention.fused_attn and not core.needs_map:
        dropout = attention.attn_drop.p if attention.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    scores = core.scores((q * attention.scale) @ k.transpose(-2, -1))
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    mixed: Tensor = attention.attn_drop(core.weights(weights)) @ v
    return mixed


class EditedAttention2d(Attention2d):
    """timm's attention over a (B, D, H, W) map with edits between q, k, v and their use; bit-equal without."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        batch, _, height, width = x.shape
        made = self.qkv(x)
        if self.head_first:
            parts = made.view(batch, self.num_heads, self.dim_head * 3, -1).chunk(3, dim=2)
        else:
            parts = made.reshape(batch, 3, self.num_heads, self.dim_head, -1).unbind(1)
        q, k, v = (part.transpose(-1, -2).contiguous() for part in parts)
        mixed = _attend(self, q, k, v, shared_rel_pos).transpose(-1, -2).reshape(batch, -1, height, width)
        out: Tensor = self.proj_drop(self.proj(mixed))
        return out


class EditedAttentionCl(AttentionCl):
    """timm's attention over (B, H, W, D) windows with edits between q, k, v and their use; bit-equal without."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        batch, made = x.shape[0], self.qkv(x)
        if self.head_first:
            q, k, v = made.view(batch, -1, self.num_heads, self.dim_head * 3).transpose(1, 2).chunk(3, dim=3)
        else:
            q, k, v = made.reshape(batch, -1, 3, self.num_heads, self.dim_head).transpose(1, 3).unbind(2)
        mixed = _attend(self, q, k, v, shared_rel_pos).transpose(1, 2).reshape(*x.shape[:-1], -1)
        out: Tensor = self.proj_drop(self.proj(mixed))
        return out


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    kind: edited
    for plain, edited in ((Attention2d, EditedAttention2d), (AttentionCl, EditedAttentionCl))
    for kind in (plain, edited)
}


@family("timm_maxxvit", "timm.models.maxxvit.MaxxVit")
def describe_timm_maxxvit(model: nn.Module) -> Backbone:
    """timm MaxViT, CoAtNet and their mixtures (MaxxViT, CoAtNeXt)."""
    net: Any = model
    size = (int(net.img_size[0]), int(net.img_size[1]))
    stem, stride = stem_places((net.stem,), size)
    steps = [step for stage in net.stages for module in stage.blocks for step in _steps(module)]
    kinds = {type(module) for module in net.modules()} & {
        PartitionAttentionCl,
        PartitionAttention2d,
        TransformerBlock2d,
    }
    if not kinds or (PartitionAttentionCl in kinds and len(kinds) > 1):
        raise UnknownBackbone(
            f"{architecture(model)} has {' and '.join(sorted(k.__name__ for k in kinds)) or 'no attention'};"
            " timm_maxxvit describes nets whose attention blocks are all of one layout."
        )
    layout = Layout.MAP if PartitionAttentionCl in kinds else Layout.CHANNELS_FIRST
    made = lay_out(steps, size, stride, layout, passing=Layout.CHANNELS_FIRST)
    end = made.where.but(Layout.CHANNELS_FIRST)
    head_norm = getattr(net.head, "norm", None)
    others: list[Place] = [*stem, *made.tail]
    others.append(
        outline.embedding(
            Point(net.stem, "output"),
            Where(-1, Layout.CHANNELS_FIRST, (size[0] // stride, size[1] // stride), 0, stride),
            stem[-1].width,
        )
    )
    if isinstance(net.norm, nn.Identity) and head_norm is not None:
        final = norm("norm", head_norm, Where(end.depth, Layout.CHANNELS_FIRST).within((1, 1)), norm_width(head_norm))
    else:
        final = norm("norm", net.norm, end, norm_width(net.norm))
    hidden = getattr(getattr(net.head, "pre_logits", None), "fc", None)
    if hidden is not None:
        others.append(projection("pre_logits", hidden, Where(end.depth, Layout.VECTOR)))
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_maxxvit",
            library="timm",
            architecture=architecture(model),
            image_size=size,
            depth=end.depth,
            width=int(net.head_hidden_size),
            prefix_tokens=0,
            pooling=net.global_pool,
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(net.stem, "input"), stem[0].width_in),
        trunk=outline.trunk(
            made.stages,
            stem[-1].width,
            int(net.num_features),
            Where(0, Layout.CHANNELS_FIRST, end.grid, 0, end.stride),
            enter=Point(net.stages[0], "input"),
            exit=Point(net.stages[-1], "output"),
        ),
        stages=made.stages,
        norm=final,
        others=others,
        pooled=pooled_by_head,
        classifier=own_classifier,
        end=Point(made.behind if made.behind is not None else net.norm, "input"),
        end_layout=Layout.CHANNELS_FIRST,
    )


def _steps(module: Any) -> Iterator[Passage | BlockMaker]:
    """The passages and blocks of one of timm's blocks."""
    kind: type = type(module)
    if kind in (MbConvBlock, ConvNeXtBlock):
        yield _convolutions(module)
    elif kind is TransformerBlock2d:
        if isinstance(module.shortcut, nn.Identity):
            yield _maker(module, None)
        else:
            yield Passage(module, lambda name, where: _halving(name, module, where), 2)
    elif kind is MaxxVitBlock:
        yield _convolutions(module.conv)
        for part in (module.attn_block, module.attn_grid):
            if part is not None:
                yield _maker(part, tuple(part.partition_size))
    else:
        raise UnknownBackbone(
            f"One block is a {kind.__name__}; timm_maxxvit describes only MbConvBlock, ConvNeXtBlock, "
            "TransformerBlock2d, MaxxVitBlock."
        )


def _convolutions(module: Any) -> Passage:
    keeps = isinstance(module.shortcut, nn.Identity)
    gate: nn.Module | None = None
    chain: tuple[nn.Module | None, ...] = (module.down, getattr(module, "conv_dw", None))
    if isinstance(module, MbConvBlock):
        gate = module.se if module.se_early is None else module.se_early
        chain = (module.pre_norm, module.down, module.conv1_1x1, module.norm1, module.conv2_kxk, gate, module.norm2)
        chain = (*chain, module.conv3_1x1)
    else:
        chain = (*chain, module.norm, module.mlp)
    unit = Unit(
        module=module,
        branch=[part for part in chain if part is not None],
        enter=Point(module, "input"),
        inner=Point(module, "output"),
        exit=Point(module, "output"),
        keeps=keeps,
        gate=() if gate is None or isinstance(gate, nn.Identity) else (gate,),
        shortcut=None if keeps else module.shortcut,
        stride=1 if keeps else conv_stride([module.shortcut]),
    )
    return convolutions(unit, opens=not keeps)


def _maker(module: Any, window: tuple[int, int] | None) -> BlockMaker:
    def make(index: int, stage: int, where: Where) -> Block:
        name, width = f"blocks.{index}", norm_width(module.norm1)
        attended = where if window is None else where.within(window)
        attn = attention_places(
            f"{name}.attn", module.attn, attended, width, KINDS, own=_positions(module.attn), by_head=_by_head(module)
        )
        attn.core.per_window = window is not None
        attn.core.layout = Layout.TOKENS  # its queries lie in a row, whatever the map
        mlp = mlp_places(f"{name}.mlp", module.mlp, where, width)
        return residual_block(index, module, attn, mlp, where, None, gains=layer_scales(module))

    return make


def _by_head(module: Any) -> bool:
    return bool(module.attn.head_first)


def _positions(attention: Any) -> dict[str, tuple[nn.Module, str]]:
    """The parameters of the bias for relative positions."""
    return {} if attention.rel_pos is None else inner_parameters("rel_pos", attention.rel_pos)


def _halving(name: str, module: Any, where: Where) -> dict[str, Place]:
    """Norms and projections of attention that halves the map; its norm sees the map before."""
    width = norm_width(module.norm2)
    qkv, fc1 = (
        projection(f"{name}.attn.qkv", module.attn.qkv, where),
        projection(f"{name}.mlp.fc1", module.mlp.fc1, where),
    )
    parts: dict[str, Place] = {
        "norm1": norm(f"{name}.norm1", module.norm1.norm, where, norm_width(module.norm1.norm)),
        "qkv": qkv,
        "proj": projection(f"{name}.attn.proj", module.attn.proj, where),
        "norm2": norm(f"{name}.norm2", module.norm2, where, width, (fc1,)),
        "fc1": fc1,
        "fc2": projection(f"{name}.mlp.fc2", module.mlp.fc2, where),
    }
    expand = module.shortcut.expand
    if isinstance(expand, nn.Conv2d):
        parts["skip"] = projection(f"{name}.skip.conv", expand, where)
    return parts
