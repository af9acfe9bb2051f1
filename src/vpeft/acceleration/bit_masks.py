"""Save the masks of ReLU and dropout as bits: one bit per element instead of two or four bytes.

Without this, a ReLU saves its whole output to know where it was positive, and dropout on a CPU saves a factor for each
element. Gradients are bit-equal, and dropout draws the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vpeft.acceleration.patches import Patches
from vpeft.injection.tuned_model import TunedModel


def packed(mask: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into uint8 (elements / 8, rounded up)."""
    flat = mask.reshape(-1)
    flat = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8).to(torch.uint8)
    return (flat << _places(mask.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """Unpack the result of `packed` into a bool tensor of `shape`."""
    mask = (bits[:, None] >> _places(bits.device)) & 1
    return mask.view(-1)[: shape.numel()].view(shape).to(torch.bool)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


class _Positive(torch.autograd.Function):
    """ReLU that saves a bit mask of its positive elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = F.relu(x)
        ctx.save_for_backward(packed(out > 0))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (bits,) = ctx.saved_tensors
        return torch.where(unpacked(bits, grad.shape), grad, 0)


class _Dropped(torch.autograd.Function):
    """Dropout that saves a bit mask of its remaining elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        if x.device.type == "cpu":
            # As torch does it on a CPU: drawn in the precision of x, scaled, multiplied.
            factor = torch.empty_like(x).bernoulli_(1 - p)
            mask = factor != 0
            out = x * factor.div_(1 - p)
        else:
            out, mask = torch.native_dropout(x, p, True)
        ctx.save_for_backward(packed(mask))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        mask = unpacked(bits, grad.shape)
        if grad.device.type == "cpu":
            return grad * mask.to(grad.dtype).div_(1 - ctx.p), None
        return torch.ops.aten.native_dropout_backward(grad, mask, 1 / (1 - ctx.p)), None


class PositiveBits:
    """Mixin of a ReLU. It never works in place, so its input can be freed at once."""

    training: bool

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        out: Tensor = _Positive.apply(x)
        return out


class DroppedBits:
    """Mixin of a dropout."""

    training: bool
    p: float

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and 0 < self.p < 1 and torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        out: Tensor = _Dropped.apply(x, self.p)
        return out


def install(tuned: TunedModel, patches: Patches) -> int:
    """Let every ReLU and every dropout with 0 < p < 1 save bits; return their number."""
    count = 0
    for module in tuned.modules():
        if type(module) is nn.ReLU:
            patches.stand_in(module, PositiveBits)
            count += 1
        elif type(module) is nn.Dropout and 0 < module.p < 1:
            patches.stand_in(module, DroppedBits)
            count += 1
    return count
