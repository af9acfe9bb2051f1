"""The tensors of a backbone that an adapter changes, once it is merged: before and after."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..injection.tuned_model import TunedModel

Changes = dict[str, tuple[Tensor | None, Tensor]]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved included; copies."""
    found = {key: value.detach().clone() for key, value in model.named_parameters(remove_duplicate=False)}
    return found | {key: value.detach().clone() for key, value in model.named_buffers(remove_duplicate=False)}


@torch.no_grad()
def weight_changes(tuned: TunedModel, name: str | None = None) -> Changes:
    """Return the changed tensors by their names in the backbone: (before, merged), in double precision if floats.

    Double precision, so that a change of rank 4 has four singular values and not four and rounding. A bias that the
    backbone does not have is before None. `tuned` stays as it is.

    Raises:
        CannotMerge: an edit cannot be expressed as a change of weights; the message lists them.
    """
    name = tuned.adapter(name).name
    twin = copy.deepcopy(tuned).double()
    with twin.disable():
        before = tensors(twin.backbone)
    if all(edit.verb == "unfreeze" for edit in twin.adapter(name).edits):
        with twin.enable(name):
            after = tensors(twin.backbone)
    else:
        twin.merge(name)
        after = tensors(twin.backbone)
    return {
        key: (before.get(key), value)
        for key, value in after.items()
        if key not in before or not torch.equal(before[key], value)
    }
