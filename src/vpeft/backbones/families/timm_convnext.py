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
from ..builders import Where, norm, own_parameters, projection
from ..convnext import convnext_block, convnext_stage, whole_cells
from ..convolutional import drop_rate
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
        stages.append(_stage(number, layer, sum(len(s.blocks) for s in stages), stride, whole_cells(size, stride)))
    depth, last = sum(len(stage.blocks) for stage in stages), stages[-1]
    width0 = int(stem_convs[-1].weight.shape[0])
    first_stride = net.feature_info[0]["reduction"]
    stem = Where(-1, Layout.CHANNELS_FIRST, whole_cells(size, first_stride), 0, first_stride)
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


def _stage(number: int, layer: Any, start: int, stride: int, grid: tuple[int, int]) -> Stage:
    blocks = [_block(start + offset, number, module, stride, grid) for offset, module in enumerate(layer.blocks)]
    down = layer.downsample
    if isinstance(down, nn.Identity):
        return convnext_stage(number, blocks)
    first = None if isinstance(down[0], nn.Identity) else down[0]
    return convnext_stage(number, blocks, first, down[-1], down)


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
    return convnext_block(
        index,
        stage,
        module,
        module.conv_dw,
        module.norm,
        mlp,
        Point(module.drop_path, "output"),
        outer,
        gain=(module, "gamma") if module.gamma is not None else None,
        drop_path=drop_rate(module.drop_path),
    )
