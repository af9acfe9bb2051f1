"""torchvision's ConvNeXt: the places of timm's, under the same names."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block, MlpSite, Stage
from ..builders import Where, branch, norm, projection, site, skip, span_verbs, stream
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
    mapped = Where(-1, Layout.CHANNELS_FIRST, _grid(size, stride), 0, stride)
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
        stages.append(_stage(len(stages), part, between, start, stride, _grid(size, stride)))
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


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return size[0] // stride, size[1] // stride


def _stage(number: int, layer: Any, down: Any, start: int, stride: int, grid: tuple[int, int]) -> Stage:
    """One stage; the downsampling before it belongs to it."""
    blocks = [_block(start + offset, number, module, stride, grid) for offset, module in enumerate(layer)]
    parts: dict[str, Place] = {}
    if down is not None:
        prefix, factor = f"stages.{number}.downsample", int(down[1].stride[0])
        wider = (grid[0] * factor, grid[1] * factor)
        before = Where(start - 1, Layout.CHANNELS_FIRST, wider, 0, stride // factor)
        parts[f"{prefix}.norm"] = norm(f"{prefix}.norm", down[0], before, int(down[1].in_channels))
        parts[f"{prefix}.reduction"] = projection(
            f"{prefix}.reduction", down[1], Where(start - 1, Layout.CHANNELS_FIRST, grid, 0, stride)
        )
    return outline.stage(number, blocks, Where(start, Layout.CHANNELS_FIRST, grid, 0, stride), parts, downsample=down)


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
    # the shortcut is added in place
    end = Point(module.stochastic_depth, "output", overwritten=True)
    mlp_branch = branch(f"{name}.mlp_branch", Point(conv, "input"), end, outer, width)
    mlp_branch.writer, mlp_branch.gain = mlp.fc2, (module, "layer_scale")
    return Block(
        name=name,
        width=width,
        enter=Point(module, "input"),
        exit=Point(module, "output"),
        verbs=span_verbs(None),
        nesting=2,
        own={"gamma": (module, "layer_scale")},
        parts={
            "conv": projection(f"{name}.conv", conv, outer),
            "norm2": norm(f"{name}.norm2", norm2, inner, width, mlp.consumers),
            "mlp": mlp,
            "mlp_branch": mlp_branch,
            "skip2": skip(f"{name}.skip2", mlp_branch, outer),
            "stream2": stream(f"{name}.stream2", mlp_branch, outer),
        },
        index=index,
        stage=stage,
        drop_path=float(module.stochastic_depth.p),
        **outer.shared(),
    )
