"""torchvision's ConvNeXt: the places of timm's, under the same names."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block, MlpSite, Stage
from ..builders import Where, norm, projection, site
from ..convnext import convnext_block, convnext_stage, whole_cells
from ..describe import UnknownBackbone, family
from ..places import Place
from ..points import Layout, Point
from .torchvision_efficientnet import last_of_classifier
from .torchvision_resnet import stated_size


def _pooled(model: nn.Module, images: Tensor) -> Tensor:
    net: Any = model
    x = net.avgpool(net.features(images))
    if isinstance(net.classifier, nn.Sequential):
        for layer in list(net.classifier)[:-1]:
            x = layer(x)
        return cast(Tensor, x)
    return cast(Tensor, x.flatten(1))


@family("torchvision_convnext", "torchvision.models.convnext.ConvNeXt")
def describe_torchvision_convnext(model: nn.Module) -> Backbone:
    """torchvision ConvNeXt (version 1)."""
    net: Any = model
    size, stem = stated_size(model), net.features[0]
    width0, stride = int(stem[0].out_channels), int(stem[0].stride[0])
    mapped = Where(-1, Layout.CHANNELS_FIRST, whole_cells(size, stride), 0, stride)
    embedding = outline.embedding(Point(stem, "output"), mapped, width0)
    others: list[Place] = [
        projection("patch", stem[0], mapped),
        norm("patch_norm", stem[1], mapped, width0),
        embedding,
    ]
    stages: list[Stage] = []
    between: Any = None
    for part in net.features[1:]:
        if isinstance(part[0], nn.LayerNorm):
            between, stride = part, stride * int(part[1].stride[0])
            continue
        start = sum(len(stage.blocks) for stage in stages)
        stages.append(_stage(len(stages), part, between, start, stride, whole_cells(size, stride)))
        between = None
    depth, last = sum(len(stage.blocks) for stage in stages), stages[-1]
    final = None
    if isinstance(net.classifier, nn.Sequential):
        final = norm("norm", net.classifier[0], Where(depth, Layout.CHANNELS_FIRST).within((1, 1)), last.width)
    return Backbone(
        module=model,
        facts=Facts(
            family="torchvision_convnext",
            library="torchvision",
            architecture=type(model).__name__,
            image_size=size,
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
        ),
        pixels=outline.pixels(Point(stem, "input"), int(stem[0].in_channels)),
        trunk=outline.trunk(stages, width0),
        stages=stages,
        norm=final,
        others=others,
        pooled=_pooled,
        classifier=last_of_classifier,
        end=Point(net.avgpool, "input"),
    )


def _stage(number: int, layer: Any, down: Any, start: int, stride: int, grid: tuple[int, int]) -> Stage:
    blocks = [_block(start + offset, number, module, stride, grid) for offset, module in enumerate(layer)]
    return convnext_stage(number, blocks) if down is None else convnext_stage(number, blocks, down[0], down[1], down)


def _block(index: int, stage: int, module: Any, stride: int, grid: tuple[int, int]) -> Block:
    if type(module).__name__ != "CNBlock":
        raise UnknownBackbone(f"blocks.{index} is a {type(module).__name__}; torchvision_convnext describes CNBlock.")
    conv, _, norm2, fc1, _, fc2, _ = module.block
    name, width = f"blocks.{index}", int(conv.out_channels)
    outer = Where(index, Layout.CHANNELS_FIRST, grid, 0, stride)
    inner = outer.but(Layout.MAP)
    parts: dict[str, Place] = {
        "fc1": projection(f"{name}.mlp.fc1", fc1, inner),
        "fc2": projection(f"{name}.mlp.fc2", fc2, inner),
    }
    reads = (parts["fc1"],)
    ends = Point(fc1, "input"), Point(fc2, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, inner, width, parts, None, reads)  # type: ignore[arg-type]
    return convnext_block(
        index,
        stage,
        module,
        conv,
        norm2,
        mlp,
        Point(module.stochastic_depth, "output", overwritten=True),  # the shortcut is added in place
        outer,
        gain=(module, "layer_scale"),
        drop_path=float(module.stochastic_depth.p),
    )
