"""torchvision's detectors and segmenters as whole models, for any number of classes."""

from __future__ import annotations

from typing import Any

from torch import nn

# The whole image, in its ratio.
_WHOLE = {"crop_pct": 1.0, "crop_mode": "border", "interpolation": "bilinear"}
# Of torchvision's transform `SemanticSegmentation`, in pixels.
_SEGMENTER_SIDE = 520
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_hosts() -> list[str]:
    """The names of all detectors and segmenters."""
    from torchvision import models

    return [*models.list_models(module=models.detection), *models.list_models(module=models.segmentation)]


def counts_background(host: nn.Module) -> bool:
    """Whether a detector's class 0 is the background: where it classifies regions, and in SSD."""
    head: Any = getattr(getattr(host, "head", None), "classification_head", None)
    return hasattr(host, "roi_heads") or hasattr(head, "num_columns")


def create_torchvision_host(name: str, pretrained: bool, classes: int | None) -> tuple[nn.Module, tuple[str, ...]]:
    """The model `name`, and the names of its layers that were made anew because they tell classes apart.

    Args:
        name: one of `torchvision_hosts`.
        pretrained: load torchvision's weights, from its cache or by a download; otherwise random ones.
        classes: without the background; None for as many as torchvision's weights have.
    """
    from torchvision.models import get_model

    own: nn.Module = get_model(name, weights="DEFAULT" if pretrained else None, weights_backbone=None)
    made = own
    fresh: tuple[str, ...] = ()
    if classes is not None:
        outputs = classes + int(counts_background(own))
        made = get_model(name, weights=None, weights_backbone=None, num_classes=outputs)
        fresh = _layers_that_differ(own, made)
        if pretrained:
            made = _with_layers(own, made, fresh)
    made.pretrained_cfg = _configuration(made)  # type: ignore[assignment]
    return made.eval(), fresh


def _layers_that_differ(one: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Names of the modules whose parameters have other shapes in the other model."""
    shapes = {key: value.shape for key, value in other.named_parameters()}
    keys = [key for key, value in one.named_parameters() if key in shapes and shapes[key] != value.shape]
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in keys))


def _with_layers(host: nn.Module, other: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """`host` with these layers, and the numbers of classes that modules keep, of `other`."""
    theirs = dict(other.named_modules())
    for name, module in host.named_modules():
        for key, value in vars(module).items():
            there = getattr(theirs.get(name), key, value)
            if type(value) is int and type(there) is int and there != value:
                setattr(module, key, there)
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(host.get_submodule(parent), last, theirs[name])
    return host


def _configuration(host: nn.Module) -> dict[str, Any]:
    """The preprocessing in timm's words. A detector normalises by itself, and resizes what it is given."""
    stated: Any = getattr(host, "transform", None)
    if stated is None:
        size, mean, deviation = (_SEGMENTER_SIDE,) * 2, _IMAGENET_MEAN, _IMAGENET_DEVIATION
    else:
        size, mean, deviation = stated.fixed_size or (stated.min_size[-1],) * 2, (0.0,) * 3, (1.0,) * 3
    return {"input_size": (3, *map(int, size)), "mean": mean, "std": deviation, **_WHOLE}
