"""A fusion as an adapter of its backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vpeft.backbones.module_names import outermost
from vpeft.injection.tuned_model import TunedModel
from vpeft.method import get_method
from vpeft.regimes.fusion.way import Fusion

HEAD_ONLY = "linear_probe"
"""The method of an adapter whose only changes are those of the backbone's own tensors."""


def put_on(tuned: TunedModel, fusion: Fusion, name: str, head: Any) -> None:
    """Attach a fusion as an adapter of this name and enable it; the base's own values stay restorable."""
    changed = {key for key, value in fusion.added.items() if bool(value.any())}
    methods = fusion.methods or (get_method(HEAD_ONLY)(),)
    base = {key: value.detach().clone() for key, value in tuned.backbone.named_parameters() if key in changed}
    tuned.attach(*methods, name=name, head=head, train=whole_parts(tuned.backbone, changed))
    live = dict(tuned.backbone.named_parameters())
    state = tuned.adapter_state(name)
    with torch.no_grad():
        for key in changed:
            live[key].copy_(base[key] + fusion.added[key].to(base[key]))
        for key, value in fusion.layers.items():
            state[key].copy_(value)


def whole_parts(model: nn.Module, names: set[str]) -> tuple[str, ...]:
    """The fewest modules and parameters that together hold exactly these parameters."""
    whole = set(names)
    for prefix, module in model.named_modules():
        inside = [f"{prefix}.{key}" for key, _ in module.named_parameters()]
        if prefix and inside and all(key in names for key in inside):
            whole.add(prefix)
    return tuple(sorted(outermost(whole)))
