"""Fold a scale and a shift per channel into the preceding frozen linear layer or norm at every step.

y = g (W x + b) + t is computed as (g W) x + (g b + t), so the output is written once. The gradient of g is the sum over
tokens of dy z with z = (y - t) / g. It is computed from y, which the next layer saves anyway. If an entry of g is close
to zero, the quotient is not exact, and the step uses the plain computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches, hooked
from vpeft.backbones.points import Layout
from vpeft.injection.operations import Apply
from vpeft.injection.switch import Switch
from vpeft.injection.tuned_model import TunedModel
from vpeft.layers.scale_shift import ScaleShift

# With |y| about |t| about 1 and |g| at this bound, the rounding of (y - t) / g is 100 times that of y: 1e-5 in fp32.
SMALLEST_SCALE = 1e-2


@dataclass(frozen=True)
class Folded:
    """The scale and shift that are folded in while the adapter is enabled."""

    switch: Switch
    adapter: str
    layer: ScaleShift


class _Scaled(torch.autograd.Function):
    """y = x (g W)^T + (g b + t) with frozen W and b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, g: Tensor, t: Tensor) -> Tensor:
        shift = t if bias is None else bias * g + t
        y = F.linear(x, (weight * g[:, None]).to(x.dtype), shift.to(x.dtype))
        ctx.save_for_backward(weight, g, t, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, g, t, y = ctx.saved_tensors
        into = None
        if ctx.needs_input_grad[0]:
            into = grad @ (weight * g[:, None]).to(grad.dtype)
        flat = grad.reshape(-1, grad.shape[-1])
        total = flat.sum(0, dtype=g.dtype)
        product = (flat * y.reshape(flat.shape)).sum(0, dtype=g.dtype)
        return into, None, None, (product - t * total) / g, total


def _vanishes(g: Tensor) -> bool:
    """Whether a scale is too small to divide by. Fake tensors, which memory plans use, have no values: never."""
    return not isinstance(g, FakeTensor) and float(g.detach().abs().min()) < SMALLEST_SCALE


class ScaledLinear:
    """Mixin of a linear layer that a scale and shift follows."""

    vpeft_folded: Folded

    def forward(self, x: Tensor) -> Tensor:
        folded = self.vpeft_folded
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        if folded.switch.on != folded.adapter:
            return F.linear(x, weight, bias)
        g, t = folded.layer.scale, folded.layer.shift
        kind = x.device.type
        # A compiler fuses the plain form with its neighbours, and cannot look at values.
        if not self.training or torch.compiler.is_compiling() or _vanishes(g):  # type: ignore[attr-defined]
            return F.linear(x, weight, bias) * g + t
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Scaled.apply(x, weight, bias, g, t)
        return out


class ScaledNorm:
    """Mixin of a LayerNorm that a scale and shift follows: both affine maps become one; autograd does the rest."""

    vpeft_folded: Folded

    def forward(self, x: Tensor) -> Tensor:
        folded = self.vpeft_folded
        if folded.switch.on != folded.adapter:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        norm: Any = self
        if not norm.training:
            plain: Tensor = folded.layer(super().forward(x))  # type: ignore[misc]
            return plain
        weight, bias = folded.layer.affine()
        if norm.bias is not None:
            bias = norm.bias * weight + bias
        if norm.weight is not None:
            weight = norm.weight * weight
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


class FusedScaleShift(Acceleration):
    """Fold scales and shifts into the frozen weights before them."""

    name = "fused_scale_shift"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        adapter = tuned.active
        assert adapter is not None
        linears = norms = 0
        for module, hook in hooked(tuned):
            listed = hook.listed(adapter)
            first = listed[0] if listed else None
            if hook.side != "output" or hook.turn is not None or not isinstance(first, Apply):
                continue
            plain = type(first.layer) is ScaleShift and not first.reads
            if not plain or first.rows is not None or first.layout is Layout.CHANNELS_FIRST:
                continue
            if any(p.requires_grad for p in module.parameters()):
                continue
            assert isinstance(first.layer, ScaleShift)
            folded = Folded(tuned._wiring.switch, adapter, first.layer)
            if type(module) is nn.Linear:
                patches.exchange(listed, first, None)
                patches.stand_in(module, ScaledLinear, vpeft_folded=folded)
                linears += 1
            elif isinstance(module, nn.LayerNorm):
                patches.exchange(listed, first, None)
                patches.stand_in(module, ScaledNorm, vpeft_folded=folded)
                norms += 1
        if not linears and not norms:
            raise NotApplicable("no scale and shift follows a frozen linear layer or LayerNorm")
        return f"folded into {linears} linear layers and {norms} norms"
