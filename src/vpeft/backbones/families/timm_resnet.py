"""timm's ResNet: with it ResNeXt, SE-ResNeXt, ECA, Res2Net, ResNeSt and SK nets, which are blocks of that class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone
from ..convolutional import Unit, drop_rate
from ..convolutional_net import make_net, timm_classifier
from ..describe import UnknownBackbone, family
from ..points import Point
from ..probe import Classifier

ENDS = ("drop_path", "se", "bn3", "bn2", "conv3", "conv2")  # what a branch can end with, the last first


@family("timm_resnet", "timm.models.resnet.ResNet")
def describe_timm_resnet(model: nn.Module) -> Backbone:
    """timm ResNet, ResNeXt, SE-ResNeXt, ECA-ResNet, Res2Net, ResNeSt, SK-ResNet; any stem."""
    net: Any = model
    reduction = {entry["module"]: int(entry["reduction"]) for entry in net.feature_info}
    units, before = [], reduction["layer1"]
    for name in (key for key in reduction if key.startswith("layer")):
        layer = getattr(net, name)
        for position, block in enumerate(layer):
            units.append(_unit(block, reduction[name] // before if position == 0 else 1))
        before = reduction[name]
    return make_net(
        model,
        family="timm_resnet",
        stem=(net.conv1, net.bn1, net.act1, net.maxpool),
        after_stem=net.maxpool,
        units=units,
        behind=net.global_pool,
        head={},
        final=None,
        pooling=net.global_pool.pool_type,
        classifier=timm_classifier,
    )


@family("timm_resnet_features", "timm.models._features.FeatureListNet")
def describe_features(model: nn.Module) -> Backbone:
    """The maps of a timm ResNet, `features_only=True`, as DETR has them inside; pooled by the mean of the last."""
    net: Any = model
    names = [name for name in net if name.startswith("layer")]
    if "conv1" not in net or not names or net.output_fmt != "NCHW":
        raise UnknownBackbone(
            f"This FeatureListNet holds {', '.join(net)}. Of timm's models made with features_only=True, ResNet"
            " is described; make others without it."
        )
    told = {entry["module"]: entry for entry in net.feature_info.info}
    if names[-1] not in net.return_layers:
        raise UnknownBackbone(f"The maps of this FeatureListNet leave out {names[-1]}, its last layer.")
    units, before = [], int(told["layer1"]["reduction"])
    for name in names:
        reduction = int(told[name]["reduction"])
        units += [_unit(block, reduction // before if at == 0 else 1) for at, block in enumerate(net[name])]
        before = reduction
    return make_net(
        model,
        family="timm_resnet_features",
        stem=[net[key] for key in ("conv1", "bn1", "act1", "maxpool") if key in net],
        after_stem=net["maxpool"],
        units=units,
        behind=units[-1].module,
        head={},
        final=None,
        pooling="avg",
        classifier=Classifier(None),
        name=type(model).__name__,
        pooled=_mean_of_last,
        width=int(told[names[-1]]["num_chs"]),
    )


def _mean_of_last(model: nn.Module, images: Tensor) -> Tensor:
    maps: list[Tensor] = model(images)
    return maps[-1].mean(dim=(2, 3))


def _unit(block: Any, stride: int) -> Unit:
    """A residual block: the sum is written over the branch's output (`x += shortcut`)."""
    gate = getattr(block, "se", None)
    chain = [part for key, part in block.named_children() if key not in ("downsample", "drop_path")]
    ends = [getattr(block, key, None) for key in ENDS]
    last, *inner = [end for end in ends if end is not None]
    sub_layer = inner[0] if getattr(block, "drop_path", None) is not None else last
    return Unit(
        module=block,
        branch=chain,
        enter=Point(block.conv1, "input"),
        inner=Point(sub_layer, "output", overwritten=True),
        exit=Point(last, "output", overwritten=True),
        keeps=block.downsample is None,
        gate=() if gate is None else (gate,),
        shortcut=block.downsample,
        drop_path=drop_rate(getattr(block, "drop_path", None)),
        stride=stride,
    )
