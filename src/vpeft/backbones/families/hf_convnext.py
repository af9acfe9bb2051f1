"""transformers' ConvNeXt, ConvNeXt V2 and DINOv3 ConvNeXt; places and names as in timm's."""

from __future__ import annotations

from typing import Any

from torch import nn

from vpeft.backbones import outline

from ..backbone import Backbone, Facts
from ..blocks import Block, MlpSite, Stage
from ..builders import Where, norm, own_parameters, projection, site
from ..convnext import convnext_block, convnext_stage, whole_cells
from ..convolutional import drop_rate
from ..describe import family
from ..hf_model import (
    HfPooling,
    architecture,
    as_pixels,
    classifier,
    for_maps,
    mean_of_map,
    pixels,
    pooler_output,
    size_of,
    tower,
)
from ..places import Norm, Place
from ..points import Layout, Point

MODELING = "transformers.models"


@family(
    "hf_convnext",
    f"{MODELING}.convnext.modeling_convnext.ConvNextModel",
    f"{MODELING}.convnext.modeling_convnext.ConvNextForImageClassification",
    f"{MODELING}.convnext.modeling_convnext.ConvNextBackbone",
    f"{MODELING}.convnextv2.modeling_convnextv2.ConvNextV2Model",
    f"{MODELING}.convnextv2.modeling_convnextv2.ConvNextV2ForImageClassification",
    f"{MODELING}.convnextv2.modeling_convnextv2.ConvNextV2Backbone",
    f"{MODELING}.dinov3_convnext.modeling_dinov3_convnext.DINOv3ConvNextModel",
    f"{MODELING}.dinov3_convnext.modeling_dinov3_convnext.DINOv3ConvNextBackbone",
)
def describe_hf_convnext(model: nn.Module) -> Backbone:
    """transformers ConvNeXt, ConvNeXt V2 and DINOv3 ConvNeXt, alone, for classification or as a detector's backbone."""
    inner = tower(model)
    config = inner.config
    encoder: Any = inner._modules.get("encoder", inner._modules.get("model"))
    size = size_of(config)
    if "embeddings" in inner._modules:
        patch, patch_norm = inner.embeddings.patch_embeddings, inner.embeddings.layernorm
    else:  # DINOv3 counts the stem as the first stage's downsampling
        patch, patch_norm = encoder.stages[0].downsample_layers
    width0, stride = int(patch.weight.shape[0]), int(patch.stride[0])
    stem = Where(-1, Layout.CHANNELS_FIRST, whole_cells(size, stride), 0, stride)
    stages: list[Stage] = []
    for number, module in enumerate(encoder.stages):
        strides = stride * 2**number
        start = sum(len(stage.blocks) for stage in stages)
        stages.append(_stage(number, module, start, strides, whole_cells(size, strides)))
    depth, last = sum(len(stage.blocks) for stage in stages), stages[-1]
    final, end, pooling = _end(inner, Where(depth, Layout.CHANNELS_FIRST, last.grid, 0, last.stride), last.width)
    embedding = outline.embedding(Point(patch_norm, "output"), stem, width0)
    others: list[Place] = [projection("patch", patch, stem), norm("patch_norm", patch_norm, stem, width0), embedding]
    return Backbone(
        module=model,
        facts=Facts(
            family="hf_convnext",
            library="transformers",
            architecture=architecture(model),
            image_size=size,
            depth=depth,
            width=last.width,
            prefix_tokens=0,
            pooling="avg",
            dynamic_size=True,
        ),
        pixels=pixels(config.num_channels, pooling),
        trunk=outline.trunk(stages, width0),
        stages=stages,
        norm=final,
        others=others,
        pooled=pooling,
        classifier=classifier,
        end=end,
    )


def _end(inner: Any, where: Where, width: int) -> tuple[Norm | None, Point | None, HfPooling]:
    """The final norm, where the map enters what follows the trunk, and the pooling."""
    if for_maps(inner):
        norms = inner._modules.get("hidden_states_norms", {})
        final = norms[inner.out_features[-1]] if norms else None
        pooling = HfPooling(as_pixels, mean_of_map)
        return (None if final is None else norm("norm", final, where, width)), None, pooling
    pooling = HfPooling(as_pixels, pooler_output)
    if "layer_norm" in inner._modules:  # DINOv3 norms the pooled map and every cell of it as one sequence
        tokens = Where(where.depth, Layout.TOKENS, where.grid, 1, where.stride)
        return norm("norm", inner.layer_norm, tokens, width), Point(inner.pool, "input"), pooling
    return norm("norm", inner.layernorm, where.but(Layout.VECTOR), width), None, pooling


def _stage(number: int, module: Any, start: int, stride: int, grid: tuple[int, int]) -> Stage:
    blocks = [_block(start + offset, number, layer, stride, grid) for offset, layer in enumerate(module.layers)]
    if not number:  # what some versions keep there is the stem
        return convnext_stage(number, blocks)
    steps = list(module._modules.get("downsampling_layer", module._modules.get("downsample_layers")))
    return convnext_stage(number, blocks, steps[0], steps[1], nn.Sequential(*steps))


def _block(index: int, stage: int, layer: Any, stride: int, grid: tuple[int, int]) -> Block:
    has = layer._modules
    conv, inner_norm = has.get("dwconv", has.get("depthwise_conv")), has.get("layernorm", has.get("layer_norm"))
    first, second = (has.get(f"pwconv{n}", has.get(f"pointwise_conv{n}")) for n in (1, 2))
    name, width = f"blocks.{index}", int(conv.weight.shape[0])
    outer = Where(index, Layout.CHANNELS_FIRST, grid, 0, stride)
    mapped = outer.but(Layout.MAP)
    fcs = {key: projection(f"{name}.mlp.{key}", module, mapped) for key, module in (("fc1", first), ("fc2", second))}
    ends = Point(first, "input"), Point(second, "output")
    mlp = site(f"{name}.mlp", MlpSite, *ends, mapped, width, fcs, None, (fcs["fc1"],))
    if "grn" in has:
        mlp.own.update({f"grn.{key}": value for key, value in own_parameters(layer.grn).items()})
    scale = next((key for key in ("layer_scale_parameter", "gamma") if layer._parameters.get(key) is not None), None)
    return convnext_block(
        index,
        stage,
        layer,
        conv,
        inner_norm,
        mlp,
        Point(layer.drop_path, "output"),
        outer,
        gain=None if scale is None else (layer, scale),
        drop_path=drop_rate(layer.drop_path),
    )
