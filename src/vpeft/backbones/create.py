"""Make a backbone from its name."""

from __future__ import annotations

from torch import nn

from ..errors import VpeftError, nearest


class UnknownModelName(VpeftError):
    """No library knows this model name."""


def create_backbone(name: str, pretrained: bool = True) -> nn.Module:
    """The model that `name` stands for, without a classifier.

    Args:
        name: a timm name with or without its pre-training tag, or `pocket_vit`, which is shipped with vpeft.
        pretrained: load the weights (the shipped ones, or from timm's own cache or download).

    Raises:
        UnknownModelName: with the nearest names.
    """
    import timm

    from . import pocket_vit  # noqa: F401 - registers the shipped model with timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UnknownModelName(f"timm has no model {name!r}. {nearest(architecture, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except RuntimeError as error:
        if "pretrained" not in str(error).lower():
            raise
        tags = ", ".join(timm.list_pretrained(f"{architecture}*")[:12]) or "none"
        raise UnknownModelName(f"{name}: {error} Names of this architecture with weights: {tags}.") from error
    return model
