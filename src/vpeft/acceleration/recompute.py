"""`low_memory`: recompute the outputs of norms and the input of the MLP's activation in the backward pass.

A frozen norm saves its input for its own gradient anyway, and its output, which a low-rank update would save too, is
recomputed from that. The activation of an MLP would save its input, the widest tensor of a block; it is recomputed from
the input of the first layer. Both use the same kernels as the forward pass, so gradients are bit-equal. Masks of ReLU
and dropout are saved as bits.
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
class Recomputation:
    """How to recompute a tensor: `make(*sources)`, from tensors that are saved for the backward pass anyway."""

    sources: tuple[Tensor, ...]
    make: Callable[..., Tensor]

    def then(self, dtype: torch.dtype) -> Recomputation:
        """Return the recomputation of the same tensor in another precision."""
        return Recomputation(self.sources, partial(_cast, self.make, dtype))


def recomputation_of(tensor: Tensor) -> Recomputation | None:
    """Return how to recompute `tensor`, if the module that computed it has stored that; otherwise None."""
    return getattr(tensor, "vpeft_again", None)


def _cast(make: Callable[..., Tensor], dtype: torch.dtype, *sources: Tensor) -> Tensor:
    return make(*sources).to(dtype)


def _made(
    forward: Callable[[Tensor], Tensor],
    before: Callable[..., Tensor] | None,
    autocast: tuple[str, bool, torch.dtype],
    *sources: Tensor,
) -> Tensor:
    """Compute forward(x) again, under the autocast of the forward pass, without a graph."""
    kind, enabled, dtype = autocast
    with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
        return forward(sources[0] if before is None else before(*sources))


class RecomputableOutput:
    """Mixin of a norm or linear layer: it stores with its output how to recompute it."""

    def forward(self, x: Tensor) -> Tensor:
        plain: Callable[[Tensor], Tensor] = super().forward  # type: ignore[misc]
        out = plain(x)
        if torch.is_grad_enabled() and out.requires_grad:
            kind, known = x.device.type, recomputation_of(x)
            autocast = (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            sources = (x.detach(),) if known is None else known.sources
            make = partial(_made, plain, None if known is None else known.make, autocast)
            out.vpeft_again = Recomputation(sources, make)  # type: ignore[attr-defined]
        return out


class _Activation(torch.autograd.Function):
    """GELU that recomputes its input in the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, approximate: str, make: Callable[..., Tensor], *sources: Tensor) -> Tensor:
        ctx.approximate, ctx.make = approximate, make
        ctx.save_for_backward(*sources)
        return F.gelu(z, approximate=approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        sources = ctx.saved_tensors  # read once: under checkpointing each reading computes them again
        into = torch.ops.aten.gelu_backward(grad, ctx.make(*sources), approximate=ctx.approximate)
        return (into, None, None, *([None] * len(sources)))


class RecomputingGelu:
    """Mixin of a GELU."""

    approximate: str

    def forward(self, z: Tensor) -> Tensor:
        again = recomputation_of(z)
        if again is None or not (torch.is_grad_enabled() and z.requires_grad):
            return F.gelu(z, approximate=self.approximate)
        out: Tensor = _Activation.apply(z, self.approximate, again.make, *again.sources)
        return out


class Recompute(Acceleration):
    """Recompute outputs of norms and inputs of activations: less memory for a little time."""

    name = "low_memory"
    for_memory = True

    def install(self, tuned: TunedModel, patches: Patches) -> str:
        norms = wide = activations = 0
        for block in tuned.description.blocks:
            assert block.exit is not None
            for place in block.norms:
                module = place.exit.module if place.exit is not None else None
                if isinstance(module, nn.LayerNorm):
                    patches.stand_in(module, RecomputableOutput)
                    norms += 1
            if block.has("mlp.fc1") and isinstance(block.projection("fc1").module, nn.Linear):
                patches.stand_in(block.projection("fc1").module, RecomputableOutput)
                wide += 1
                for module in block.exit.module.modules():
                    if type(module) is nn.GELU:
                        patches.stand_in(module, RecomputingGelu)
                        activations += 1
        masks = bit_masks.install(tuned, patches)
        if not activations and not norms and not masks:
            raise NotApplicable("no block has a LayerNorm, a GELU after a linear layer, a ReLU or an active dropout")
        text = f"{norms} norms and {activations} activations are recomputed"
        return f"{text}, {masks} masks are saved as bits" if masks else text
