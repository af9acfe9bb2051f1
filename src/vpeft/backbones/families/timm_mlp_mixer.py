"""timm's MLP-Mixer class: Mixer, ResMLP and gMLP: tokens are mixed by linears over their positions.

The mixing of tokens stands where a transformer has attention: its branch is `attn_branch`, its site `attn`, and its
linears, over positions, are `attn.mix1` and `attn.mix2`, or `attn.mix` where there is one. gMLP has one branch,
`mlp_branch`, whose gate mixes tokens. The number of tokens is fixed by these weights, so none can be inserted.
"""

from __future__ import annotations

from typing import Any

from timm.models.mlp_mixer import MixerBlock, ResBlock, SpatialGatingBlock
from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block
from ..builders import Where, branch, norm, projection, site, skip, stream
from ..convolutional import drop_rate
from ..convolutional_net import timm_classifier, timm_pooled
from ..describe import UnknownBackbone, family
from ..places import Place, Site
from ..points import Layout, Point
from .timm_vit import architecture, mlp_places


@family("timm_mlp_mixer", "timm.models.mlp_mixer.MlpMixer")
def describe_timm_mlp_mixer(model: nn.Module) -> Backbone:
    """timm MLP-Mixer, ResMLP, gMLP and gMixer."""
    net: Any = model
    width, patch = int(net.embed_dim), net.stem
    grid, stride = tuple(patch.grid_size), int(patch.patch_size[0])
    blocks = [_block(index, module, grid, stride, width) for index, module in enumerate(net.blocks)]
    depth = len(blocks)
    stem = Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride)
    tokens = Where(-1, Layout.TOKENS, grid, 0, stride)
    others: list[Place] = [projection("patch", patch.proj, stem)]
    if not isinstance(patch.norm, nn.Identity):
        others.append(norm("patch_norm", patch.norm, tokens, width))
    others.append(outline.embedding(Point(patch, "output"), tokens, width))
    trunk, stage = outline.tower(blocks, Where(0, Layout.TOKENS, grid, 0, stride))
    return Backbone(
        module=net,
        facts=Facts(
            family="timm_mlp_mixer",
            library="timm",
            architecture=architecture(net),
            image_size=tuple(patch.img_size),
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling=net.global_pool,
        ),
        pixels=outline.pixels(Point(patch, "input"), int(patch.proj.weight.shape[1])),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", net.norm, Where(depth, Layout.TOKENS, grid, 0, stride), width),
        others=others,
        pooled=timm_pooled,
        classifier=timm_classifier,
    )


def _block(index: int, module: Any, grid: tuple[int, int], stride: int, width: int) -> Block:
    where = Where(index, Layout.TOKENS, grid, 0, stride)
    name = f"blocks.{index}"
    if type(module) is SpatialGatingBlock:
        parts = _branch(name, 2, module.norm, module.mlp_channels, Point(module.drop_path, "output"), where, width)
    elif type(module) in (MixerBlock, ResBlock):
        mixing = module.mlp_tokens if type(module) is MixerBlock else module.linear_tokens
        # one drop path serves both branches: what ran before tells which call it is
        calls = (mixing, module.mlp_channels)
        ends = [Point(module.drop_path, "output", calls=calls, call=call) for call in (0, 1)]
        parts = {
            **_branch(name, 1, module.norm1, mixing, ends[0], where, width),
            **_branch(name, 2, module.norm2, module.mlp_channels, ends[1], where, width),
        }
    else:
        raise UnknownBackbone(
            f"{name} is a {type(module).__name__}; timm_mlp_mixer describes MixerBlock, ResBlock and"
            " SpatialGatingBlock."
        )
    return outline.block(index, module, parts, where, width, drop_path=drop_rate(module.drop_path))


def _branch(name: str, number: int, before: Any, inner: Any, end: Point, where: Where, width: int) -> dict[str, Place]:
    """Norm, sub-layer, branch, shortcut and stream of the first (tokens) or the second (channels) residual."""
    kind = "attn" if number == 1 else "mlp"
    around = branch(f"{name}.{kind}_branch", Point(before, "input"), end, where, width)
    sub_layer = (
        _mixing(f"{name}.attn", before, inner, end, where, width)
        if number == 1
        else _mlp(f"{name}.mlp", inner, where, width)
    )
    return {
        f"norm{number}": norm(f"{name}.norm{number}", before, where, width, sub_layer.consumers),
        kind: sub_layer,
        f"{kind}_branch": around,
        f"skip{number}": skip(f"{name}.skip{number}", around, where),
        f"stream{number}": stream(f"{name}.stream{number}", around, where),
    }


def _mixing(name: str, before: Any, module: Any, end: Point, where: Where, width: int) -> Site:
    """What mixes tokens: as a whole on (B, N, D), between norm and add; its linears on (B, D, N), over positions."""
    turned = Where(where.depth, Layout.TOKENS)
    linears = [module] if isinstance(module, nn.Linear) else [module.fc1, module.fc2]
    keys = ["mix"] if len(linears) == 1 else ["mix1", "mix2"]
    parts: dict[str, Place] = {
        key: projection(f"{name}.{key}", linear, turned) for key, linear in zip(keys, linears, strict=True)
    }
    # the module itself sees the sequence turned, so that the site begins where the norm gives it
    return site(name, AttentionSite, Point(before, "output"), end, where, width, parts)


def _mlp(name: str, module: Any, where: Where, width: int) -> Site:
    mlp = mlp_places(name, module, where, width)
    gate = getattr(module, "gate", None)
    if gate is not None and hasattr(gate, "proj"):
        positions = Where(where.depth, Layout.TOKENS)
        mlp.parts["gate.norm"] = norm(f"{name}.gate.norm", gate.norm, where, int(gate.norm.weight.shape[0]))
        mlp.parts["gate.proj"] = projection(f"{name}.gate.proj", gate.proj, positions)
    return mlp
