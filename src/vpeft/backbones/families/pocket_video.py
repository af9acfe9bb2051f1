"""`pocket_video`: plain blocks of timm over one sequence of the tubelets of a clip."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..builders import Where, norm, projection
from ..clip_frames import fitted_in_time, steps_of
from ..describe import FramesRule, family
from ..inputs import InputSpec
from ..points import Layout, Point
from ..timm_isotropic import layer_scales, residual_block
from ..tokens import TokenCarrier
from .timm_vit import attention_places, mlp_places

NAME = "pocket_video"


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Fit the positions in time to clips of `frames` frames."""
    net: Any = model
    old, new = net.time_embed.shape[1], steps_of(NAME, frames, int(net.patch_embed.stride[0]))
    net.frames = frames
    if old == new:
        return []
    made, said = fitted_in_time(NAME, net.time_embed.data, (old, new), rule)
    net.time_embed = nn.Parameter(made, requires_grad=net.time_embed.requires_grad)
    return [said]


def _pooled(model: nn.Module, clips: Tensor) -> Tensor:
    net: Any = model
    tokens: Tensor = net.forward_features(clips)
    return tokens.mean(dim=1)


def _head(model: nn.Module) -> nn.Module:
    net: Any = model
    found: nn.Module = net.head
    return found


@family(NAME, "vpeft.backbones.pocket_video.PocketVideo", fit_frames=fit_frames)
def describe_pocket_video(model: nn.Module) -> Backbone:
    """The small model for clips that pretraining/pocket_video.py makes."""
    net: Any = model
    tubelet, stride, _ = (int(side) for side in net.patch_embed.stride)
    size, width, depth = (net.side, net.side), int(net.num_features), len(net.blocks)
    carrier, steps, channels = TokenCarrier(0), net.frames // tubelet, int(net.patch_embed.in_channels)

    def where(index: int) -> Where:
        return Where(index, Layout.TOKENS, net.grid, 0, stride, frames=steps)

    blocks = []
    for index, module in enumerate(net.blocks):
        attn = attention_places(f"blocks.{index}.attn", module.attn, where(index), width)
        mlp = mlp_places(f"blocks.{index}.mlp", module.mlp, where(index), width)
        gains = layer_scales(module)
        blocks.append(residual_block(index, module, attn, mlp, where(index), carrier, gains=gains, steps=True))
    trunk, stage = outline.tower(blocks, where(0), Point(net.norm, "output"))
    own = {name: (model, name) for name in ("pos_embed", "time_embed")}
    return Backbone(
        module=model,
        facts=Facts(
            family=NAME,
            library="vpeft",
            architecture=NAME,
            image_size=size,
            depth=depth,
            width=width,
            prefix_tokens=0,
            pooling="avg",
        ),
        pixels=outline.pixels(Point(net.patch_embed, "input"), channels),
        trunk=trunk,
        stages=[stage],
        norm=norm("norm", net.norm, where(depth), width),
        others=[
            projection("patch", net.patch_embed, where(-1).but(Layout.CHANNELS_FIRST)),
            outline.embedding(Point(net.pos_drop, "output"), where(-1), width, own=own),
        ],
        pooled=_pooled,
        classifier=_head,
        end=Point(net.norm, "input"),
        inputs=InputSpec(size, channels, layout="clips", names=("clips",), frames=net.frames),
    )
