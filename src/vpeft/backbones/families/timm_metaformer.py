"""timm's MetaFormer class: PoolFormer, ConvFormer and CAFormer: blocks that differ in what mixes their tokens.

What mixes tokens stands where a transformer has attention: `attn_branch`, with the site `attn`. A pooling has no
layers; a separable convolution has `attn.mix1`, `attn.conv` and `attn.mix2`. In CAFormer the blocks are those that
attend, over a sequence; the blocks of convolutions before them are passages. Where a block scales its shortcut, the
scaled one counts as the shortcut.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models.metaformer import Attention, MetaFormerBlock, Pooling, SepConv
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block
from ..builders import Where, branch, norm, projection, site, skip, stream
from ..convolutional import drop_rate, norm_width
from ..convolutional_net import image_size, stem_places
from ..describe import UnknownBackbone, family
from ..places import Place, Projection
from ..points import Layout, Point
from ..staged import BlockMaker, Passage, lay_out
from ..timm_isotropic import architecture, own_classifier, pooled_by_head
from .timm_vit import attention_places, mlp_places


class EditedMetaAttention(Attention):
    """timm's attention with edits between q, k, v and their use; bit-equal without."""

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        core: Any = self.vpeft_core
        q, k, v = core(*qkv.unbind(0))
        if self.fused_attn and not core.needs_map:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            scores = core.scores((q @ k.transpose(-2, -1)) * self.scale)
            x = self.attn_drop(core.weights(scores.softmax(dim=-1))) @ v
        out: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, count, width)))
        return out


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: EditedMetaAttention,
    EditedMetaAttention: EditedMetaAttention,
}


@family("timm_metaformer", "timm.models.metaformer.MetaFormer")
def describe_timm_metaformer(model: nn.Module) -> Backbone:
    """timm PoolFormer (versions 1 and 2), ConvFormer and CAFormer."""
    net: Any = model
    size = image_size(model)
    stem, stride = stem_places((net.stem,), size)
    attends = any(type(block.token_mixer) in KINDS for stage in net.stages for block in stage.blocks)
    steps: list[Passage | BlockMaker] = []
    for stage in net.stages:
        if not isinstance(stage.downsample, nn.Identity):
            steps.append(_downsampling(stage.downsample))
        for block in stage.blocks:
            steps.append(_passing(block) if attends and type(block.token_mixer) not in KINDS else _maker(block))
    layout = Layout.TOKENS if attends else Layout.CHANNELS_FIRST
    made = lay_out(steps, size, stride, layout, passing=Layout.CHANNELS_FIRST)
    start = Where(-1, Layout.CHANNELS_FIRST, (size[0] // stride, size[1] // stride), 0, stride)
    mapped, depth, width = made.where.but(Layout.CHANNELS_FIRST), made.where.depth, int(net.num_features)
    final = net.head.norm
    return Backbone(
        module=model,
        facts=Facts(
            family="timm_metaformer",
            library="timm",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
            keeps_batch=True,
            rounding=("nearest", "ceil"),
        ),
        pixels=outline.pixels(Point(net.stem, "input"), stem[0].width_in),
        trunk=outline.trunk(
            made.stages,
            stem[0].width,
            width,
            Where(0, Layout.CHANNELS_FIRST, mapped.grid, 0, mapped.stride),
            enter=Point(net.stages[0], "input"),
            exit=Point(net.stages[-1], "output"),
        ),
        stages=made.stages,
        norm=norm("norm", final, Where(depth, Layout.CHANNELS_FIRST).within((1, 1)), norm_width(final)),
        others=[*stem, outline.embedding(Point(net.stem, "output"), start, stem[0].width), *made.tail],
        pooled=pooled_by_head,
        classifier=own_classifier,
        end=Point(net.head.global_pool if made.behind is None else made.behind, "input"),
        end_layout=Layout.CHANNELS_FIRST,
    )


def _downsampling(module: Any) -> Passage:
    def places(name: str, where: Where) -> dict[str, Place]:
        reduction = projection(f"{name}.reduction", module.conv, where)
        if isinstance(module.norm, nn.Identity):
            return {"reduction": reduction}
        return {"norm": norm(f"{name}.norm", module.norm, where, reduction.width_in), "reduction": reduction}

    return Passage(module, places, int(module.conv.stride[0]))


def _passing(module: Any) -> Passage:
    """A block of convolutions in a net whose other blocks attend."""

    def places(name: str, where: Where) -> dict[str, Place]:
        block = _block(0, module, where)
        kept = [part for part in block.walk() if isinstance(part, Projection) or part.name.endswith(("norm1", "norm2"))]
        for part in kept:
            part.name = part.name.replace("blocks.0", name, 1)
        return {part.name: part for part in kept}

    return Passage(module, places, opens=False)


def _maker(module: Any) -> BlockMaker:
    return lambda index, stage, where: _block(index, module, where)


def _block(index: int, module: Any, where: Where) -> Block:
    kind: type = type(module)
    if kind is not MetaFormerBlock:
        raise UnknownBackbone(f"One block is a {kind.__name__}; timm_metaformer describes only MetaFormerBlock.")
    name, width = f"blocks.{index}", norm_width(module.norm1)
    attn, mlp = (
        _mixer(f"{name}.attn", module.token_mixer, where, width),
        mlp_places(f"{name}.mlp", module.mlp, where, width),
    )
    parts: dict[str, Place] = {}
    for number, short, inner in ((1, "attn", attn), (2, "mlp", mlp)):
        opens, scale = getattr(module, f"norm{number}"), getattr(module, f"layer_scale{number}")
        shortcut, closes = getattr(module, f"res_scale{number}"), Point(scale, "output")
        around = branch(f"{name}.{short}_branch", Point(opens, "input"), closes, where, width)
        around.writer = cast(
            Projection | None, inner.parts.get("fc2", inner.parts.get("proj", inner.parts.get("mix2")))
        )
        around.gain = None if isinstance(scale, nn.Identity) else (scale, "scale")
        beside = branch(f"{name}.{short}_branch", Point(shortcut, "output"), closes, where, width)
        parts |= {
            f"norm{number}": norm(f"{name}.norm{number}", opens, where, width, inner.consumers),
            short: inner,
            f"{short}_branch": around,
            f"skip{number}": skip(f"{name}.skip{number}", beside, where),
            f"stream{number}": stream(f"{name}.stream{number}", beside, where),
        }
    return outline.block(index, module, parts, where, width, drop_path=drop_rate(module.drop_path1))


def _mixer(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    if type(module) in KINDS:
        return attention_places(name, module, where, width, KINDS)
    parts: dict[str, Place] = {}
    if isinstance(module, SepConv):
        layers = {"mix1": module.pwconv1, "conv": module.dwconv, "mix2": module.pwconv2}
        parts |= {key: projection(f"{name}.{key}", layer, where) for key, layer in layers.items()}
    elif not isinstance(module, Pooling):
        raise UnknownBackbone(
            f"{name} is a {type(module).__name__}; timm_metaformer describes Attention, SepConv and Pooling."
        )
    reads = tuple(part for key, part in parts.items() if key == "mix1")
    ends = Point(module, "input"), Point(module, "output")
    return site(name, AttentionSite, *ends, where, width, parts, None, cast(Any, reads))
