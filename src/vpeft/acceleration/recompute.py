"""The low-memory profile: normed tensors and the activation's input are made again in the backward pass.

A frozen norm keeps its input for its own gradient anyway; its output, which a low-rank change keeps too, follows from
that. The activation between the two layers of an MLP keeps its input, the widest tensor of a block; it follows from the
input of the first layer. Both are computed by the same kernels as before, so gradients are the same bits. Masks of ReLU
and dropout are kept as bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vpeft.acceleration import bit_masks
from vpeft.acceleration.acceleration import Acceleration, NotApplicable
from vpeft.acceleration.patches import Patches
from vpeft.injection.tuned_model import TunedModel


@dataclass(frozen=True)
class Again:
    """How a tensor is made again: `make(*sources)`, from tensors that are kept for the backward pass anyway."""

    sources: tuple[Tensor, ...]
    make: Callable[..., Tensor]

    def then(self, dtype: torch.dtype) -> Again:
        """The same tensor in another precision."""
        return Again(self.sources, partial(_cast, self.make, dtype))


def again_of(tensor: Tensor) -> Again | None:
    """How `tensor` is made again, where the module that made it has said so."""
    return getattr(tensor, "vpeft_again", None)


def _cast(make: Callable[..., Tensor], dtype: torch.dtype, *sources: Tensor) -> Tensor:
    return make(*sources).to(dtype)


def _made(
    forward: Callable[[Tensor], Tensor],
    before: Callable[..., Tensor] | None,
    autocast: tuple[str, bool, torch.dtype],
    *sources: Tensor,
) -> Tensor:
    """forward(x) once more, under the autocast of the forward pass, without a graph."""
    kind, enabled, dtype = autocast
    with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
        return forward(sources[0] if before is None else before(*sources))


class Remembering:
    """Stands before the class of a norm or linear map: its output knows how it is made again."""

    def forward(self, x: Tensor) -> Tensor:
        plain: Callable[[Tensor], Tensor] = super().forward  # type: ignore[misc]
        out = plain(x)
        if torch.is_grad_enabled() and out.requires_grad:
            kind, known = x.device.type, again_of(x)
            autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            sources = (x.detach(),) if known is None else known.sources
            make = partial(_made, plain, None if known is None else known.make, autocast)
            out.vpeft_again = Again(sources, make)  # type: ignore[attr-defined]
        return out


class _Activation(torch.autograd.Function):
    """GELU whose input is made again when its gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, approximate: str, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
        ctx.approximate, ctx.make = approximate, make
        ctx.save_for_backward(*sources)
        return F.gelu(z, approximate=approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        sources = ctx.saved_tensors  # asked for once: under checkpointing they are made anew for each asking
        into = torch.ops.aten.gelu_backward(grad, ctx.make(*sources), approximate=ctx.approximate)
        return (into, None, None, *([None] * len(sources)))


class Recomputing:
    """Stands before the class of a GELU."""

    approximate: str

    def forward(self, z: Tensor) -> Tensor:
        again = again_of(z)
        if again is None or not (torch.is_grad_enabled() and z.requires_grad):
            return F.gelu(z, approximate=self.approximate)
        out: Tensor = _Activation.apply(z, self.approximate, again.make, *again.sources)
        return out


class Recompute(Acceleration):
    """Less memory for a little time: normed tensors and the activation's input are computed again."""

    name = "low_memory"
    for_memory = True

    def install(self, tuned: TunedModel, changes: Patches) -> str:
        norms = wide = activations = 0
        for block in tuned.description.blocks:
            assert block.exit is not None
            for place in block.norms:
                module = place.exit.module if place.exit is not None else None
                if isinstance(module, nn.LayerNorm):
                    changes.stand_in(module, Remembering)
                    norms += 1
            if block.has("mlp.fc1") and isinstance(block.projection("fc1").module, nn.Linear):
                changes.stand_in(block.projection("fc1").module, Remembering)
                wide += 1
                for module in block.exit.module.modules():
                    if type(module) is nn.GELU:
                        changes.stand_in(module, Recomputing)
                        activations += 1
        masks = bit_masks.install(tuned, changes)
        if not activations and not norms and not masks:
            raise NotApplicable("no block has a LayerNorm, a GELU behind a linear map, a ReLU or a dropout that acts")
        said = f"{norms} norms and {activations} activations are made again"
        return f"{said}, {masks} masks are kept as bits" if masks else said
