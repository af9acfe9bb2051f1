"""torchvision's Video Swin Transformer: windows over time, height and width, and one function for a whole attention.

As in its Swin for images, the function takes the weights themselves; while an edit is there, a class of ours stands in.
Maps are (B, T, H, W, D). It has no table of absolute positions, so it takes clips of any length.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import AttentionSite, Block, MlpSite, Stage
from ..builders import Where, attention_core, norm, own_parameters, projection, site, token_rewrites
from ..clip_frames import steps_of
from ..describe import FramesRule, UnknownBackbone, family
from ..inputs import InputSpec
from ..patch_merging import merging_places
from ..places import Place
from ..points import Layout, Point, StandIn
from ..torchvision_windows import PromptedBlock, PromptedMerging
from ..torchvision_windows_3d import EditedShiftedWindows3d
from ..window_tokens import BesideTokens
from .torchvision_resnet import stated_size

TRAINED_ON = 32  # frames of the clips that torchvision's weights were trained on


def stated_frames(model: nn.Module, otherwise: int) -> int:
    """The frames of a clip: torchvision's video models do not say, so `otherwise` unless they have `clip_frames`."""
    return int(getattr(model, "clip_frames", otherwise))


def fit_frames(model: nn.Module, frames: int, rule: FramesRule) -> list[str]:
    """Any number of frames is taken as it is; the last tubelet is padded where it is not whole."""
    net: Any = model
    steps_of(type(model).__name__, frames, int(net.patch_embed.tuple_patch_size[0]))
    net.clip_frames = frames
    return []


def _pooled(model: nn.Module, clips: Tensor) -> Tensor:
    swin: Any = model
    x = swin.norm(swin.features(swin.pos_drop(swin.patch_embed(clips))))
    pooled: Tensor = swin.avgpool(x.permute(0, 4, 1, 2, 3)).flatten(1)
    return pooled


def _head(model: nn.Module) -> nn.Module:
    swin: Any = model
    found: nn.Module = swin.head
    return found


@family("torchvision_swin3d", "torchvision.models.video.swin_transformer.SwinTransformer3d", fit_frames=fit_frames)
def describe_torchvision_swin3d(model: nn.Module) -> Backbone:
    """torchvision Video Swin Transformer."""
    swin: Any = model
    size, stem, frames = stated_size(model), swin.patch_embed, stated_frames(model, TRAINED_ON)
    tubelet, stride, _ = (int(side) for side in stem.tuple_patch_size)
    steps, width0 = -(-frames // tubelet), int(stem.proj.out_channels)
    grid, reach = (-(-size[0] // stride), -(-size[1] // stride)), stride
    first = Where(-1, Layout.MAP, grid, 0, stride, frames=steps)
    others: list[Place] = [projection("patch", stem.proj, first.but(Layout.CHANNELS_FIRST))]
    if not isinstance(stem.norm, nn.Identity):
        others.append(norm("patch_norm", stem.norm, first, width0))
    others.append(outline.embedding(Point(swin.pos_drop, "output"), first, width0))
    stages: list[Stage] = []
    carrier, merging, between = BesideTokens(swin.norm), [], None
    for part in swin.features:
        if not isinstance(part, nn.Sequential):
            merging.append((part, PromptedMerging))
            between, reach, grid = part, reach * 2, ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
            continue
        start = sum(len(stage.blocks) for stage in stages)
        where = Where(start, Layout.MAP, grid, 0, reach, frames=steps)
        blocks = [_block(start + at, len(stages), module, where, carrier) for at, module in enumerate(part)]
        parts = {} if between is None else merging_places(len(stages), between, where)
        stages.append(outline.stage(len(stages), blocks, where, parts, downsample=between))
        between = None
    depth, last, mean = sum(len(stage.blocks) for stage in stages), stages[-1], Point(swin.norm, "output")
    last.pooled = last.blocks[-1].pooled = mean
    end = Where(depth, Layout.MAP, last.grid, 0, last.stride, frames=steps)
    channels = int(stem.proj.in_channels)
    return Backbone(
        module=model,
        facts=Facts(
            family="torchvision_swin3d",
            library="torchvision",
            architecture=type(model).__name__,
            image_size=size,
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(stem, "input"), channels),
        trunk=outline.trunk(stages, width0, pooled=mean, between=tuple(merging)),
        stages=stages,
        norm=norm("norm", swin.norm, end, last.width),
        others=others,
        pooled=_pooled,
        classifier=_head,
        inputs=InputSpec(size, channels, layout="clips", names=("clips",), frames=frames),
    )


def _block(index: int, stage: int, module: Any, around: Where, carrier: BesideTokens) -> Block:
    name, width = f"blocks.{index}", int(module.norm1.normalized_shape[0])
    if type(module) not in (SwinTransformerBlock, PromptedBlock):
        raise UnknownBackbone(
            f"{name} is a {type(module).__name__}; torchvision_swin3d describes SwinTransformerBlock."
        )
    where = Where(index, Layout.MAP, around.grid, 0, around.stride, frames=around.frames)
    attn = _attention(f"{name}.attn", module.attn, where, width)
    linears = [part for part in module.mlp if isinstance(part, nn.Linear)]
    fc1, fc2 = (projection(f"{name}.mlp.fc{number}", layer, where) for number, layer in enumerate(linears, start=1))
    ends = Point(module.mlp, "input"), Point(module.mlp, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, where, width, {"fc1": fc1, "fc2": fc2}, None, (fc1,))
    # one module drops both branches: which call is meant, what ran before it tells
    calls = (module.attn, module.mlp)
    drops = [Point(module.stochastic_depth, "output", calls=calls, call=number) for number in (0, 1)]
    assert around.grid is not None and around.frames is not None
    # padded windows carry zeros that the norm's edits never see, so then nothing merges into qkv
    sides = zip((around.frames, *around.grid), module.attn.window_size, strict=True)
    padded = any(side > window and side % window for side, window in sides)
    return outline.residual_pair(
        index,
        module,
        (
            outline.Residual(
                attn, Point(module.norm1, "input"), drops[0], module.norm1, () if padded else attn.consumers, attn.proj
            ),
            outline.Residual(mlp, Point(module.norm2, "input"), drops[1], module.norm2, mlp.consumers, mlp.fc2),
        ),
        where,
        width,
        carrier=carrier,
        rewrites=token_rewrites(((module, PromptedBlock), (module.attn, EditedShiftedWindows3d))),
        drop_path=float(module.stochastic_depth.p),
        stage=stage,
    )


def _attention(name: str, module: Any, where: Where, width: int) -> AttentionSite:
    time, high, wide = (int(side) for side in module.window_size)
    assert where.grid is not None and where.frames is not None
    window = (min(high, where.grid[0]), min(wide, where.grid[1]))
    inside = Where(where.depth, Layout.TOKENS, window, local=True, stride=where.stride, frames=min(time, where.frames))
    made = {"qkv": projection(f"{name}.qkv", module.qkv, inside)}
    third = made["qkv"].width // 3
    for offset, letter in enumerate("qkv"):
        made[letter] = projection(f"{name}.{letter}", module.qkv, inside, (offset * third, (offset + 1) * third))
    made["proj"] = projection(f"{name}.proj", module.proj, inside)
    needs = (StandIn(module, EditedShiftedWindows3d),)
    for part in made.values():
        part.enter = Point(part.module, "input", needs=needs)
        part.exit = Point(part.module, "output", needs=needs)
    parts: dict[str, Place] = dict(made)
    heads = int(module.num_heads)
    parts["core"] = attention_core(
        f"{name}.core", module, EditedShiftedWindows3d, inside, third, heads, per_window=True
    )
    ends = Point(module, "input"), Point(module, "output")
    return site(name, AttentionSite, *ends, where, width, parts, own_parameters(module), (made["qkv"],))
