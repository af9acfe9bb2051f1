"""Add low-rank updates to the output of a frozen linear layer in place.

Hooks add each update in a separate operation that writes the whole output again; for a fused projection they also copy
it. Here one accumulating GEMM adds an update to the output in place, and only x and the products of width R are saved
for the backward pass. Exact up to the rounding of one sum, and often bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches, hooked
from vpeft.acceleration.recompute import recomputation_of
from vpeft.injection.operations import Add, Hold, Operation
from vpeft.injection.switch import Switch
from vpeft.injection.tuned_model import TunedModel
from vpeft.layers.low_rank import LowRank


@dataclass(frozen=True)
class Part:
    """One low-rank update: its layer and the output rows that it acts on (None for all)."""

    layer: LowRank
    rows: tuple[int, int] | None


@dataclass(frozen=True)
class Fused:
    """The updates of a linear layer, by adapter."""

    switch: Switch
    parts: Mapping[str | None, tuple[Part, ...]]

    def here(self, x: Tensor) -> list[tuple[slice, Part]]:
        """Return the updates of the enabled adapters, each with its rows of x (..., D_in) flattened to (rows, D_in)."""
        shares = self.switch.shares
        if shares is None:
            return [(slice(None), part) for part in self.parts.get(self.switch.on, ())]
        per, first = x.shape[:-1].numel() // shares.images, 0
        found = []
        for name, count in shares.counts:
            rows = slice(first, first + count * per)
            found += [(rows, part) for part in self.parts.get(name, ())]
            first = rows.stop
        return found


# For each part: its rows of x, its columns of the output, and the scale s.
Spec = tuple[tuple[slice, slice, float], ...]


class _Sum(torch.autograd.Function):
    """y = x W^T + b, then y[rows, outputs] += s (x[rows] A^T) B^T for each part."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spec: Spec,
        again: Callable[..., Tensor] | None,
        count: int,
        *more: Tensor,
    ) -> Tensor:
        """`more` holds the `count` tensors from which `again` recomputes x, then A and B of each part."""
        sources, factors = more[:count], more[count:]
        out = F.linear(x, weight, bias)
        flat, rows = out.view(-1, out.shape[-1]), x.reshape(-1, x.shape[-1])
        products = []
        for i, (own, outputs, scale) in enumerate(spec):
            h = rows[own] @ factors[2 * i].t()
            flat[own, outputs].addmm_(h, factors[2 * i + 1].t(), alpha=scale)
            products.append(h)
        ctx.spec, ctx.again, ctx.count = spec, again, count
        kept = sources if again is not None else (x,)
        ctx.save_for_backward(weight, *kept, *products, *factors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        weight, *saved = ctx.saved_tensors
        kept = ctx.count if ctx.again is not None else 1
        parts = len(ctx.spec)
        products, factors = saved[kept : kept + parts], saved[kept + parts :]
        x = saved[0] if ctx.again is None else ctx.again(*saved[:kept])
        x = x.reshape(-1, x.shape[-1])
        flat = grad.reshape(-1, grad.shape[-1])
        into = flat @ weight if ctx.needs_input_grad[0] else None
        gradients: list[Tensor | None] = []
        for i, (own, outputs, scale) in enumerate(ctx.spec):
            a, b = factors[2 * i], factors[2 * i + 1]
            piece = flat[own, outputs]
            if scale != 1.0:
                piece = piece * scale
            inner = piece @ b
            gradients += [inner.t() @ x[own], piece.t() @ products[i]]
            if into is not None:
                into[own].addmm_(inner, a)
        shaped = None if into is None else into.view(*grad.shape[:-1], weight.shape[1])
        return (shaped, None, None, None, None, None, *([None] * ctx.count), *gradients)


class LowRankBeside:
    """Mixin of a linear layer with low-rank updates."""

    vpeft_fused: Fused

    def forward(self, x: Tensor) -> Tensor:
        fused = self.vpeft_fused
        weight, bias = self.weight, self.bias  # type: ignore[attr-defined]
        parts = fused.here(x)
        if not parts:
            return F.linear(x, weight, bias)
        if not self.training and fused.switch.shares is None:  # type: ignore[attr-defined]
            return self._plain(x)
        factors: list[Tensor] = [factor for _, part in parts for factor in (part.layer.A, part.layer.B)]
        again = recomputation_of(x)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            again = None if again is None else again.then(dtype)
            cast: tuple[Tensor, ...] = getattr(self, "vpeft_cast", ())
            if cast and cast[0].dtype == dtype:
                x, weight, bias = x.to(dtype), cast[0], cast[1] if len(cast) > 1 else None
            else:
                x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            factors = [factor.to(dtype) for factor in factors]
        spec = tuple((own, slice(*(part.rows or (0, weight.shape[0]))), part.layer.scale) for own, part in parts)
        sources = () if again is None else again.sources
        make = None if again is None else again.make
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Sum.apply(x, weight, bias, spec, make, len(sources), *sources, *factors)
        return out

    def _plain(self, x: Tensor) -> Tensor:
        """Compute it as the hooks do, bit by bit, so that an evaluation equals that of the saved adapter."""
        out, fused = F.linear(x, self.weight, self.bias), self.vpeft_fused  # type: ignore[attr-defined]
        for part in fused.parts.get(fused.switch.on, ()):
            change = part.layer(x)
            if part.rows is None:
                out = out + change
            else:
                start, stop = part.rows
                out = out.slice_scatter((out[..., start:stop] + change).to(out.dtype), -1, start, stop)
        return out


class FusedLowRank(Acceleration):
    """Add low-rank updates to the output of a frozen linear layer in place."""

    name = "fused_low_rank"

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        assert tuned.active is not None
        return self.install_for(tuned, patches, [tuned.active])

    def install_for(self, tuned: TunedModel, patches: Patches, adapters: Sequence[str]) -> str:
        """Install it for several adapters that are enabled at once, each for its own images."""
        fused = 0
        reasons = {"no low-rank update acts in parallel to a frozen linear layer": None}
        points = hooked(tuned)
        for module, hook in points:
            if hook.side != "output" or hook.turn is not None or type(module) is not nn.Linear:
                continue
            if any(p.requires_grad for p in module.parameters()):
                continue
            held = {
                id(op.slot): (other.listed(op.adapter), op)
                for same, other in points
                if same is module and other.side == "input"
                for op in other.operations
                if isinstance(op, Hold)
            }
            by_adapter = dict[str | None, tuple[Part, ...]]()
            for adapter in adapters:
                parts, used = [], []
                for op in hook.listed(adapter):
                    reason = _why_not(op, held)
                    if reason is not None:
                        reasons |= {reason: None} if reason else {}
                        break
                    assert isinstance(op, Add) and isinstance(op.layer, LowRank)
                    parts.append(Part(op.layer, None if op.rows is None else (op.rows.start, op.rows.stop)))
                    used += [(hook.listed(adapter), op), held[id(op.inputs[0])]]
                for listed, op in used:
                    patches.exchange(listed, op, None)
                if parts:
                    by_adapter[adapter] = tuple(parts)
                    fused += len(parts)
            if by_adapter:
                patches.stand_in(module, LowRankBeside, vpeft_fused=Fused(tuned._wiring.switch, by_adapter))
        if not fused:
            raise NotApplicable(list(reasons)[-1])
        return f"{fused} low-rank updates are added in place"


def _why_not(op: Operation, held: Mapping[int, object]) -> str | None:
    """Return why an operation at a linear layer's output cannot be fused: a reason, perhaps empty; None if it can."""
    if not (isinstance(op, Add) and type(op.layer) is LowRank):
        return ""
    slot = op.inputs[0]
    if len(op.inputs) != 1 or id(slot) not in held or slot.turn or slot.rows is not None:
        return ""
    if op.rows is not None and op.rows.groups > 1:
        return "the output rows of a low-rank update are not adjacent"
    if op.layer.dropout.p > 0:
        return "dropout acts on the input of each low-rank update"
    return None
