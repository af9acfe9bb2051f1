"""Heads: how wide the features are that reach them, and the linear one that is made when classes are counted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from .adapter import AdapterError


def feature_width(edits: Sequence[Edit], description: Backbone) -> int:
    """Channels of the pooled feature: the backbone's, unless a layer at the outlet states its own `feature_width`."""
    width = description.facts.width
    for edit in edits:
        if edit.place is description.outlet:
            width = int(getattr(edit.layer, "feature_width", width))
    return width


def new_head(width: int, classes: int) -> nn.Linear:
    """A linear head, weights N(0, 0.02) cut at two deviations, bias 0, as timm starts its classifiers."""
    if classes < 1:
        raise AdapterError(f"A head needs at least one class; {classes} were asked for.")
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
