"""A convolutional net as a whole: stem, units, head; see `convolutional` for the units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import outline
from .backbone import Backbone, Facts
from .builders import Where, projection
from .convolutional import Size, Unit, conv_stride, is_norm, leaves, make_stages, norm_place, time_stride
from .inputs import InputSpec
from .places import Place, Projection
from .points import Layout, Point
from .timm_isotropic import architecture


def make_net(
    module: nn.Module,
    *,
    family: str,
    stem: Sequence[nn.Module],
    after_stem: nn.Module,
    units: Sequence[Unit],
    behind: nn.Module,
    head: Mapping[str, nn.Module],
    final: nn.Module | None,
    pooling: str,
    classifier: Callable[[nn.Module], nn.Module],
    pooled_head: bool = False,
    library: str = "timm",
    name: str | None = None,
    size: Size | None = None,
    pooled: Callable[[nn.Module, Tensor], Tensor] | None = None,
    width: int | None = None,
    stem_stride: int | None = None,
    dynamic: bool = True,
    frames: int | None = None,
) -> Backbone:
    """A convolutional net from its parts.

    Args:
        module: the model.
        family: name of the description.
        stem: modules before the first unit, in order; the first receives the pixels.
        after_stem: the module whose output enters the first unit.
        units: of all stages.
        behind: the module that receives what leaves the last unit.
        head: further convolutions and linears between the trunk and the pooled feature, by name.
        final: the norm there, if there is one.
        pooling: how the library pools.
        classifier: gives the last layer.
        pooled_head: whether head and final norm come after the pooling.
        library, name, size, pooled, width: where the model is not timm's: its library, its name, height and width of
            its images, the function that gives the pooled feature, and the channels of that.
        stem_stride: of the whole stem, where its layers do not run one after the other.
        dynamic: whether images of other sizes are accepted.
        frames: of the clips, for a net of clips.
    """
    net: Any = module
    size = size or image_size(module)
    placed, stride = stem_places(stem, size, frames)
    stride = stem_stride or stride
    made = make_stages(units, size, stride, placed[-1].frames)
    depth = sum(len(stage.blocks) for stage in made.stages)
    grid, steps = (-(-size[0] // stride), -(-size[1] // stride)), placed[-1].frames
    start = Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride, frames=steps)
    end = Where(depth, Layout.CHANNELS_FIRST, made.grid, 0, made.stride, frames=made.frames)
    end = end.within((1, 1)) if pooled_head else end
    width0 = [p.width for p in placed if isinstance(p, Projection)][-1]
    embedding = outline.embedding(Point(after_stem, "output"), start, width0)
    flat = Where(depth, Layout.VECTOR)
    heads: list[Place] = [
        projection(key, layer, end if isinstance(layer, nn.Conv2d) else flat) for key, layer in head.items()
    ]
    assert made.first is not None and made.last is not None
    first = made.first
    return Backbone(
        module=module,
        facts=Facts(
            family=family,
            library=library,
            architecture=name or architecture(module),
            image_size=size,
            depth=depth,
            width=width or int(net.head_hidden_size),
            prefix_tokens=0,
            pooling=pooling,
            dynamic_size=dynamic,
            rounding=("ceil", "ceil"),
        ),
        pixels=outline.pixels(Point(stem[0], "input"), placed[0].width_in),
        trunk=outline.trunk(
            made.stages,
            width0,
            made.width,
            Where(0, Layout.CHANNELS_FIRST, made.grid, 0, made.stride, frames=made.frames),
            enter=Point(first, "input"),
            exit=Point(made.last, "output"),
        ),
        stages=made.stages,
        norm=None if final is None else norm_place("norm", final, end, overwritten=True),
        others=[*placed, embedding, *made.tail, *heads],
        pooled=pooled or timm_pooled,
        classifier=classifier,
        end=Point(made.behind or behind, "input"),
        inputs=None if frames is None else InputSpec(size, placed[0].width_in, "clips", ("clips",), frames),
    )


def stem_places(stem: Sequence[nn.Module], size: Size, frames: int | None = None) -> tuple[list[Place], int]:
    """`patch`, `patch_1`, ... and `patch_norm`, `patch_norm_1`, ..., and the stride of the whole stem."""
    places: list[Place] = []
    stride, convs, norms = 1, 0, 0
    for layer in leaves(stem):
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
            stride *= int(layer.stride[-2])
        frames = None if frames is None else -(-frames // time_stride([layer]))
        grid = (-(-size[0] // stride), -(-size[1] // stride))
        where = Where(-1, Layout.CHANNELS_FIRST, grid, 0, stride, frames=frames)
        if is_norm(layer):
            places.append(norm_place(f"patch_norm_{norms}" if norms else "patch_norm", layer, where, overwritten=True))
            norms += 1
        else:
            places.append(projection(f"patch_{convs}" if convs else "patch", layer, where))
            convs += 1
    return places, conv_stride(stem)


def image_size(model: nn.Module) -> Size:
    """Height and width that a timm model's configuration names, 224 where it names none."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    _, height, width = config.get("input_size") or (3, 224, 224)
    return int(height), int(width)


def timm_pooled(model: nn.Module, images: Tensor) -> Tensor:
    """What enters timm's last layer, (B, D)."""
    net: Any = model
    pooled: Tensor = net.forward_head(net.forward_features(images), pre_logits=True)
    return pooled


def timm_classifier(model: nn.Module) -> nn.Module:
    """timm's last layer."""
    net: Any = model
    found: nn.Module = net.get_classifier()
    return found
