"""Make a backbone of torchvision or open_clip from its name, with the preprocessing that its weights expect."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import VpeftError, nearest, need_extra
from .names import OPEN_CLIP, TORCHVISION

SIZED = {"VisionTransformer": "image_size", "MaxVit": "input_size"}  # torchvision's models of one size


class UnknownModelName(VpeftError):
    """No library knows this model name."""


class UnsuitableSize(VpeftError):
    """The model does not take images of this size."""


def create_from_torchvision(name: str, pretrained: bool, size: tuple[int, int] | None) -> nn.Module:
    """The classifier `name` of torchvision, of images or clips, or NAME.WEIGHTS for others than its default weights.

    Its classifier stays where it is; `describe` knows it, and the feature does not depend on it.

    Raises:
        UnknownModelName: with the nearest names, or the names of its weights.
        UnsuitableSize: the model has one size, and the weights are for another.
    """
    import torchvision
    from torchvision.models import get_model, get_model_weights, list_models

    architecture, _, tag = name.partition(".")
    known = [*list_models(module=torchvision.models), *list_models(module=torchvision.models.video)]
    if architecture not in known:
        raise UnknownModelName(f"torchvision has no model {architecture!r}. {nearest(architecture, known)}")
    choices = get_model_weights(architecture)
    tags = [one.name for one in choices]
    if tag and tag not in tags:
        raise UnknownModelName(f"torchvision has no weights {tag!r} for {architecture}. There are: {', '.join(tags)}.")
    weights = choices[tag] if tag else choices.DEFAULT
    options: dict[str, Any] = {}
    if size is not None:
        plain = get_model(architecture, weights=None) if architecture.startswith(("vit", "maxvit")) else None
        argument = SIZED.get(type(plain).__name__)
        if argument is not None and (pretrained or size[0] != size[1]):
            own = weights.transforms().crop_size[0]
            if size != (own, own):
                raise UnsuitableSize(
                    f"The weights of {TORCHVISION}{architecture} are for images of {own} x {own} pixels, not {size[0]}"
                    f" x {size[1]}. Leave out the size, or take a model of timm, whose positions are resized."
                )
        elif argument is not None:
            options[argument] = size if argument == "input_size" else size[0]
    model: nn.Module = get_model(architecture, weights=weights if pretrained else None, **options)
    model.pretrained_cfg = _configuration(weights, size)  # type: ignore[assignment]
    return model.eval()


def _configuration(weights: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    """The preprocessing of torchvision's weights in timm's words."""
    steps = weights.transforms()
    crop, whole = steps.crop_size[0], steps.resize_size[0]
    return {
        "url": weights.url,
        "input_size": (3, *(size or (crop, crop))),
        "crop_pct": crop / whole,
        "crop_mode": "center",
        "interpolation": steps.interpolation.value,
        "mean": tuple(steps.mean),
        "std": tuple(steps.std),
        "classifier": ("fc", "classifier", "head", "heads"),
    }


def create_from_open_clip(name: str, pretrained: bool, size: tuple[int, int] | None) -> nn.Module:
    """The image tower of an open_clip model; arguments and errors as `create_whole_open_clip`."""
    whole: Any = create_whole_open_clip(name, pretrained, size, text=False)
    tower: nn.Module = whole.visual
    return tower.eval()


def create_whole_open_clip(
    name: str, pretrained: bool, size: tuple[int, int] | None = None, text: bool = True
) -> nn.Module:
    """An open_clip model with both towers: NAME/WEIGHTS, or NAME alone where the weights are not wanted.

    Args:
        name: see above.
        pretrained: load the weights.
        size: of the images, if not the model's own.
        text: whether the text tower is wanted; a pre-trained one of the hub is then loaded too.

    Raises:
        UnknownModelName: with the nearest names, or the names of its weights.
        MissingExtra: open_clip is not installed.
    """
    open_clip: Any = need_extra("open_clip", "clip")
    architecture, _, tag = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        raise UnknownModelName(f"open_clip has no model {architecture!r}. {nearest(architecture, known)}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if (tag and tag not in tags) or (pretrained and not tag):
        asked = f"has no weights {tag!r}" if tag else "has several weights"
        raise UnknownModelName(
            f"{OPEN_CLIP}{architecture} {asked}. Name them as {OPEN_CLIP}{architecture}/WEIGHTS; there are:"
            f" {', '.join(tags) or 'none'}."
        )
    options = {} if size is None else {"force_image_size": size}
    made: Any = open_clip.create_model(
        architecture,
        pretrained=tag if pretrained else None,
        load_weights=pretrained,
        pretrained_text=False,
        **options,
    )
    if text and hasattr(made.visual, "preprocess_cfg"):
        made.preprocess_cfg = made.visual.preprocess_cfg
    whole: nn.Module = made
    return whole.eval()
