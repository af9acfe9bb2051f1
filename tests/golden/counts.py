"""Numbers of trained parameters on models of the papers' size, without making their tensors."""

from __future__ import annotations

from functools import cache

import timm
import torch
from torch import nn

import vpeft
from vpeft.backbones.frame_reader import FrameReader
from vpeft.methods import Method

VIT_B, SWIN_B = "vit_base_patch16_224", "swin_base_patch4_window7_224"


@cache
def _model(name: str) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=0)
    return model


def trained(*methods: Method, model: str = VIT_B, head: int | None = None) -> int:
    """Trained parameters without the head, or with one of `head` classes."""
    with torch.device("meta"):
        tuned = vpeft.tune(_model(model), *methods, num_classes=head, verify=False, show=False)
    plan = tuned.plan()
    count = plan.trainable if head is None else plan.trainable_with_head
    if all(method.restorable for method in methods):
        tuned.detach()
    else:
        _model.cache_clear()
    return count


def trained_on_frames(*methods: Method, frames: int, model: str = VIT_B, head: int | None = None) -> int:
    """The same for clips of `frames` frames, which pass an image model one by one."""
    with torch.device("meta"):
        reader = FrameReader(timm.create_model(model, num_classes=0), frames)
        tuned = vpeft.tune(reader, *methods, num_classes=head, verify=False, show=False)
    plan = tuned.plan()
    return plan.trainable if head is None else plan.trainable_with_head
