"""Cast frozen weights to the precision of the forward pass once.

Under autocast, every step casts every frozen weight and keeps the copy until the backward pass. The copies made here
have the same values and serve every step, every part of a batch and validation. The weights themselves do not change,
because adapter files hold their digest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.fused_low_rank import LowRankBeside
from vpeft.acceleration.patches import Patches
from vpeft.injection.tuned_model import TunedModel


class CastLinear:
    """Mixin of a linear layer with a frozen weight; its bias may train."""

    bias: Tensor | None
    vpeft_cast: tuple[Tensor, ...]

    def forward(self, x: Tensor) -> Tensor:
        weight, *bias = self.vpeft_cast
        kind = x.device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != weight.dtype:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        return F.linear(x, weight, bias[0] if bias else self.bias)


class FrozenPrecision(Acceleration):
    """Cast frozen weights to the precision of the forward pass once."""

    name = "frozen_precision"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
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
                patches.note(module, vpeft_cast=cast)
            else:
                patches.stand_in(module, CastLinear, vpeft_cast=cast)
            count += sum(p.numel() for p in cast)
        if not count:
            raise NotApplicable("no linear layer is frozen")
        return f"{count * dtype.itemsize / 2**20:.1f} MiB of frozen weights are cast once"
