"""Frozen weights in the precision of the forward pass, made once.

Under autocast every frozen weight is cast anew at each step, and the copy is held until the backward pass. The copies
made here have the same values, and are there for every step, for every part of a batch and for validation. The weights
themselves stay as they are, since adapter files name their digest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.fused_low_rank import LowRankBeside
from vpeft.acceleration.patches import Patches
from vpeft.injection.tuned_model import TunedModel


class InPrecision:
    """Stands before the class of a linear map whose weight is frozen; its bias may be trained."""

    bias: Tensor | None
    vpeft_cast: tuple[Tensor, ...]

    def forward(self, x: Tensor) -> Tensor:
        weight, *bias = self.vpeft_cast
        kind = x.device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != weight.dtype:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        return F.linear(x, weight, bias[0] if bias else self.bias)


class FrozenPrecision(Acceleration):
    """Frozen weights are cast to the precision of the forward pass once."""

    name = "frozen_precision"

    def install(self, tuned: TunedModel, changes: Patches) -> str:
        like = next(p for p in tuned.backbone.parameters() if p.is_floating_point())
        kind = like.device.type
        if not torch.is_autocast_enabled(kind):
            raise NotApplicable("the weights are in the precision of the forward pass")
        dtype, count = torch.get_autocast_dtype(kind), 0
        for module in tuned.backbone.modules():
            fused = isinstance(module, LowRankBeside)
            if not (type(module) is nn.Linear or fused) or module.weight.requires_grad:
                continue
            cast = tuple(p.detach().to(dtype) for p in module.parameters(recurse=False) if not p.requires_grad)
            if fused:
                changes.note(module, vpeft_cast=cast)
            else:
                changes.stand_in(module, InPrecision, vpeft_cast=cast)
            count += sum(p.numel() for p in cast)
        if not count:
            raise NotApplicable("no linear map is frozen")
        return f"{count * dtype.itemsize / 2**20:.1f} MiB of frozen weights are cast once"
