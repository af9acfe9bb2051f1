"""timm's ConvNeXt (versions 1 and 2): one residual branch a block, no attention, no tokens.

The branch is a depthwise convolution (`conv`), a norm and an MLP; as the norm precedes the MLP it is `norm2`, and the
branch and its shortcut are `mlp_branch` and `skip2`.
"""

from __future__ import annotations

from typing import Any, cast

from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block, Stage
from ..builders import Where, branch, norm, own_parameters, projection, skip, span_verbs, stream
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point
from .timm_vit import architecture, mlp_places


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    net: Any = model
    pooled: Tensor = net.forward_head(net.forward_features(images), pre_logits=True)
    return pooled


def _classifier(model: nn.Module) -> nn.Module:
    found: nn.Module = model.head.fc  # type: ignore[union-attr, assignment]
    return found


@family("timm_convnext", "timm.models.convnext.ConvNeXt")
def describe_timm_convnext(model: nn.Module) -> Backbone:
    """timm ConvNeXt and ConvNeXt V2, with the MLP as linears or as 1x1 convolutions."""
    net: Any = model
    config = getattr(net, "pretrained_cfg", None) or {}
    size = tuple(config.get("input_size", (3, 224, 224))[1:])
    stem_convs = [layer for layer in net.stem if isinstance(layer, nn.Conv2d)]
    stride = 1
    for conv in stem_convs:
        stride *= int(conv.stride[0])
    stages: list[Stage] = []
    for number, layer in enumerate(net.stages):
        stride = net.feature_info[number]["reduction"]
        stages.append(_stage(number, layer, sum(len(s.blocks) for s in stages), stride, _grid(size, stride)))
    depth, last = sum(len(stage.blocks) for stage in stages), stages[-1]
    width0 = int(stem_convs[-1].weight.shape[0])
    first_stride = net.feature_info[0]["reduction"]
    stem = Where(-1, Layout.CHANNELS_FIRST, _grid(size, first_stride), 0, first_stride)
    others: list[Place] = [projection("patch", stem_convs[0], stem)]
    for number, conv in enumerate(stem_convs[1:], start=1):
        others.append(projection(f"patch_{number}", conv, stem))
    if not isinstance(net.stem[-1], nn.Conv2d):
        others.append(norm("patch_norm", net.stem[-1], stem, width0))
    others.append(outline.embedding(Point(net.stem, "output"), stem, width0))
    end = Where(depth, Layout.CHANNELS_FIRST, last.grid, 0, last.stride)
    final = None
    head_norm = getattr(net.head, "norm", None)
    if not isinstance(net.norm_pre, nn.Identity):
        final = norm("norm", net.norm_pre, end, net.num_features)
    elif head_norm is not None and not isinstance(head_norm, nn.Identity):
        final = norm("norm", head_norm, Where(depth, Layout.CHANNELS_FIRST).within((1, 1)), net.num_features)
    hidden = getattr(net.head, "pre_logits", None)
    if hidden is not None and hasattr(hidden, "fc"):
        others.append(projection("pre_logits", hidden.fc, Where(depth, Layout.VECTOR)))
    return Backbone(
        module=net,
        facts=Facts(
            family="timm_convnext",
            library="timm",
            architecture=architecture(net),
            image_size=cast(tuple[int, int], size),
            depth=depth,
            width=net.head_hidden_size,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
        ),
        pixels=outline.pixels(Point(net.stem, "input"), int(stem_convs[0].weight.shape[1])),
        trunk=outline.trunk(stages, width0, enter=Point(net.stages[0], "input"), exit=Point(net.stages[-1], "output")),
        stages=stages,
        norm=final,
        others=others,
        pooled=_pooled,
        classifier=_classifier,
        end=Point(net.norm_pre, "input"),
    )


def _grid(size: tuple[int, ...], stride: int) -> tuple[int, int]:
    return size[0] // stride, size[1] // stride


def _stage(number: int, layer: Any, start: int, stride: int, grid: tuple[int, int]) -> Stage:
    """One stage; the downsampling before it belongs to it."""
    blocks = [_block(start + offset, number, module, stride, grid) for offset, module in enumerate(layer.blocks)]
    parts: dict[str, Place] = {}
    if not isinstance(layer.downsample, nn.Identity):
        pre, conv = layer.downsample[0], layer.downsample[-1]
        prefix = f"stages.{number}.downsample"
        before = Where(start - 1, Layout.CHANNELS_FIRST, (grid[0] * 2, grid[1] * 2), 0, stride // 2)
        if not isinstance(pre, nn.Identity):
            parts[f"{prefix}.norm"] = norm(f"{prefix}.norm", pre, before, int(conv.weight.shape[1]))
        parts[f"{prefix}.reduction"] = projection(
            f"{prefix}.reduction", conv, Where(start - 1, Layout.CHANNELS_FIRST, grid, 0, stride)
        )
    return outline.stage(
        number,
        blocks,
        Where(start, Layout.CHANNELS_FIRST, grid, 0, stride),
        parts,
        downsample=None if isinstance(layer.downsample, nn.Identity) else layer.downsample,
    )


def _block(index: int, stage: int, module: Any, stride: int, grid: tuple[int, int]) -> Block:
    if type(module) is not ConvNeXtBlock:
        raise UnknownBackbone(f"blocks.{index} is a {type(module).__name__}; timm_convnext describes ConvNeXtBlock.")
    if module.shortcut is not None and not isinstance(module.shortcut, nn.Identity):
        raise UnknownBackbone(f"blocks.{index} changes shape on its shortcut, so it is no residual block to adapt.")
    name, width = f"blocks.{index}", int(module.conv_dw.weight.shape[0])
    outer = Where(index, Layout.CHANNELS_FIRST, grid, 0, stride)
    inner = outer if module.use_conv_mlp else outer.but(Layout.MAP)
    mlp = mlp_places(f"{name}.mlp", module.mlp, inner, width)
    response = getattr(module.mlp, "grn", None)
    if response is not None and not isinstance(response, nn.Identity):
        mlp.own.update({f"grn.{key}": value for key, value in own_parameters(response).items()})
    mlp_branch = branch(
        f"{name}.mlp_branch", Point(module.conv_dw, "input"), Point(module.drop_path, "output"), outer, width
    )
    mlp_branch.writer, mlp_branch.gain = mlp.fc2, (module, "gamma") if module.gamma is not None else None
    return Block(
        name=name,
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=span_verbs(None),
        nesting=2,
        own=own_parameters(module),
        parts={
            "conv": projection(f"{name}.conv", module.conv_dw, outer),
            "norm2": norm(f"{name}.norm2", module.norm, inner, width, mlp.consumers),
            "mlp": mlp,
            "mlp_branch": mlp_branch,
            "skip2": skip(f"{name}.skip2", mlp_branch, outer),
            "stream2": stream(f"{name}.stream2", mlp_branch, outer),
        },
        index=index,
        stage=stage,
        drop_path=float(getattr(module.drop_path, "drop_prob", 0.0) or 0.0),
        **outer.shared(),
    )
