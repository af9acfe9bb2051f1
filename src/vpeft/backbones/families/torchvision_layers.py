"""Nets that torchvision takes apart for its detectors and segmenters: ResNets and MobileNetV3, which give maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone
from ..convolutional import Unit, conv_stride, is_norm
from ..convolutional_net import make_net
from ..describe import UnknownBackbone, family
from ..points import Point
from ..probe import Classifier
from .torchvision_resnet import resnet_of, stated_size


@family("torchvision_layers", "torchvision.models._utils.IntermediateLayerGetter")
def describe_torchvision_layers(model: nn.Module) -> Backbone:
    """The layers of a torchvision ResNet or MobileNetV3, as its detectors have them; pooled by the mean of the last."""
    net: Any = model
    layers = [net[name] for name in net if name.startswith("layer")]
    if "conv1" in net and layers:
        return resnet_of(model, layers, layers[-1][-1], "torchvision_layers", _mean_of_last, Classifier(None))
    inner = [part for part in net.values() if type(part).__name__ == "InvertedResidual"]
    if inner and len(inner) + 2 == len(net):
        return _mobilenet(model, inner)
    raise UnknownBackbone(
        f"This IntermediateLayerGetter holds {', '.join(net)}. Of torchvision's nets taken apart in this way, ResNet"
        " and MobileNetV3 with its last convolution are described."
    )


def _mobilenet(model: nn.Module, inner: list[Any]) -> Backbone:
    net: Any = model
    stem, *_, last = net.values()
    return make_net(
        model,
        family="torchvision_layers",
        stem=(stem,),
        after_stem=stem,
        units=[_inverted(block) for block in inner],
        behind=last,
        head={"head_conv": last[0]},
        final=last[1] if is_norm(last[1]) else None,
        pooling="avg",
        classifier=Classifier(None),
        library="torchvision",
        name=type(model).__name__,
        size=stated_size(model),
        pooled=_mean_of_last,
        width=int(last[0].out_channels),
    )


def _inverted(block: Any) -> Unit:
    """An inverted residual: where there is a shortcut, it is added in place to the branch."""
    gates = [layer for layer in block.block if type(layer).__name__ == "SqueezeExcitation"]
    keeps = bool(block.use_res_connect)
    end = Point(block.block, "output", overwritten=keeps)
    return Unit(
        module=block,
        branch=(block.block,),
        enter=Point(block.block, "input"),
        inner=end,
        exit=end,
        keeps=keeps,
        gate=gates,
        stride=conv_stride(layer for layer in block.block if layer not in gates),
    )


def _mean_of_last(model: nn.Module, images: Tensor) -> Tensor:
    *_, last = model(images).values()  # in the order of execution, which ends with the last layer that is asked for
    mean: Tensor = last.mean(dim=(2, 3))
    return mean
