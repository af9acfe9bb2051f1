"""A scale and a shift of each channel behind a frozen linear map or norm, folded into its weights at every step.

y = g (W x + b) + t is computed as (g W) x + (g b + t), so that nothing is written twice. The gradient of g needs the
sum over tokens of dy z with z = (y - t) / g; it is taken from y, which whoever reads y keeps anyway, instead of from z.
Where a g is nearly zero that quotient is not exact, and the step is computed in the plain way.
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
    """What is folded while the adapter is on."""

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
    """Whether a scale is too small to be divided by; where memory is planned there are no numbers, and none is."""
    return not isinstance(g, FakeTensor) and float(g.detach().abs().min()) < SMALLEST_SCALE


class ScaledLinear:
    """Stands before the class of a linear map."""

    vpeft_folded: Folded

    def forward(self, x: Tensor) -> Tensor:
        folded = self.vpeft_folded
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        if folded.switch.on != folded.adapter:
            return F.linear(x, weight, bias)
        g, t = folded.layer.scale, folded.layer.shift
        kind = x.device.type
        # A compiler joins the plain form with what is around it, and cannot look at the numbers.
        if not self.training or torch.compiler.is_compiling() or _vanishes(g):  # type: ignore[attr-defined]
            return F.linear(x, weight, bias) * g + t
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Scaled.apply(x, weight, bias, g, t)
        return out


class ScaledNorm:
    """Stands before the class of a LayerNorm: the affine map joins the norm's own, and autograd does the rest."""

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
    """Scales and shifts join the frozen weights that they follow."""

    name = "fused_scale_shift"

    def install(self, tuned: TunedModel, changes: Patches) -> str:
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
                changes.exchange(listed, first, None)
                changes.stand_in(module, ScaledLinear, vpeft_folded=folded)
                linears += 1
            elif isinstance(module, nn.LayerNorm):
                changes.exchange(listed, first, None)
                changes.stand_in(module, ScaledNorm, vpeft_folded=folded)
                norms += 1
        if not linears and not norms:
            raise NotApplicable("no scale and shift follows a frozen linear map or LayerNorm")
        return f"folded into {linears} linear maps and {norms} norms"
