"""timm's distilled DeiT: a ViT with a second token, whose head is averaged with that of the class token."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..backbone import Backbone
from ..describe import UnknownBackbone, family
from ..points import Point
from ..timm_isotropic import isotropic
from .timm_vit import vit_blocks


def _no_head(model: nn.Module) -> nn.Module:
    found: nn.Module = model.head  # type: ignore[assignment]
    return found


@family("timm_deit", "timm.models.deit.VisionTransformerDistilled")
def describe_timm_deit(model: nn.Module) -> Backbone:
    """timm DeiT with a distillation token; its feature is the mean of class and distillation token."""
    deit: Any = model
    if not isinstance(deit.head, nn.Identity):
        raise UnknownBackbone(
            "A distilled DeiT has a head for each of its two tokens, which no single feature feeds. Make it with"
            " num_classes=0, as vpeft.create_backbone does, and let vpeft.tune make one head."
        )
    blocks, carrier = vit_blocks(model)
    embedded = Point(deit.norm_pre, "output")
    dynamic = bool(deit.dynamic_img_size)
    return isotropic("timm_deit", model, blocks, carrier, embedded, dynamic=dynamic, classifier=_no_head)
