"""transformers' ResNet: basic and bottleneck blocks, alone, for classification or as a detector's backbone."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..convolutional import Unit
from ..convolutional_net import make_net
from ..describe import family
from ..hf_model import (
    HfPooling,
    architecture,
    as_pixels,
    classifier,
    for_maps,
    mean_of_map,
    pooler_output,
    size_of,
    tower,
)
from ..points import Point

MODELING = "transformers.models.resnet.modeling_resnet"


@family(
    "hf_resnet",
    f"{MODELING}.ResNetModel",
    f"{MODELING}.ResNetForImageClassification",
    f"{MODELING}.ResNetBackbone",
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetBackbone",
)
def describe_hf_resnet(model: nn.Module) -> Backbone:
    """transformers ResNet and RT-DETR's ResNet, alone, for classification or as a detector's backbone."""
    inner = tower(model)
    stem: Any = inner.embedder
    units = [_unit(layer) for stage in inner.encoder.stages for layer in stage.layers]
    for_detectors = for_maps(model)
    pooling = HfPooling(as_pixels, mean_of_map if for_detectors else pooler_output)
    return make_net(
        model,
        family="hf_resnet",
        stem=(stem.embedder, stem.pooler),
        after_stem=stem.pooler,
        units=units,
        behind=units[-1].module if for_detectors else inner.pooler,
        head={},
        final=None,
        pooling="avg",
        classifier=classifier,
        library="transformers",
        name=architecture(model),
        size=size_of(inner.config),
        pooled=pooling,
        width=int(inner.config.hidden_sizes[-1]),
    )


def _unit(layer: Any) -> Unit:
    """A residual block: the sum is written over the branch's output (`hidden_state += residual`)."""
    keeps = isinstance(layer.shortcut, nn.Identity)
    end = Point(layer.layer, "output", overwritten=True)
    stride = 1
    for part in layer.layer:
        stride *= int(part.convolution.stride[0])
    return Unit(
        module=layer,
        branch=(layer.layer,),
        enter=Point(layer.layer, "input"),
        inner=end,
        exit=end,
        keeps=keeps,
        shortcut=None if keeps else layer.shortcut,
        stride=stride,
    )
