"""Frozen linear layers in eight or four bits: less memory for rounded weights; adapters keep full precision.

int8 rounds each row of a weight to multiples of 1/127 of its largest entry. nf4 rounds each entry to the nearest of
sixteen quantiles of the normal distribution, scaled by the largest entry of its block of 64 (QLoRA, Dettmers et al.
2023). A weight is dequantised for each product, forward and backward, and then discarded, so the backward pass saves no
more tensors than without quantisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..errors import VpeftError, nearest
from .weights_digest import weights_digest

if TYPE_CHECKING:
    from .tuned_model import TunedModel

Kind = Literal["int8", "nf4"]
BLOCK = 64
# QLoRA's offset: it lets the outermost quantiles, scaled to one, be finite.
_OFFSET = 0.9677083


class CannotQuantise(VpeftError):
    """The frozen weights cannot be quantised, or are quantised already."""


def levels() -> Tensor:
    """Return the sixteen values of nf4: eight quantiles above zero, zero, and seven below, scaled to [-1, 1]."""
    above = torch.special.ndtri(torch.linspace(_OFFSET, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(_OFFSET, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (values / values.abs().max()).float()


class _Product(torch.autograd.Function):
    """x W^T + b, where W is dequantised in the forward pass and again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, module: Quantised) -> Tensor:
        ctx.module = module
        return F.linear(x, module.made(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        into = grad @ ctx.module.made(grad.dtype) if ctx.needs_input_grad[0] else None
        shift = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return into, shift, None


class Quantised(nn.Linear):
    """A quantised linear layer: buffers `codes` and `scales` replace its weight; reading `weight` dequantises it."""

    codes: Tensor
    scales: Tensor
    table: Tensor
    kind: Kind

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.made(self.scales.dtype)

    def made(self, dtype: torch.dtype) -> Tensor:
        """Return the dequantised weight (out, in)."""
        if self.kind == "int8":
            return (self.codes.to(self.scales.dtype) * self.scales).to(dtype)
        indices = torch.stack([self.codes >> 4, self.codes & 15], dim=-1).view(-1, BLOCK)
        values = self.table[indices.int()] * self.scales
        return values.view(-1)[: self.out_features * self.in_features].view(self.out_features, -1).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Product.apply(x, bias, self)
        return out


@torch.no_grad()
def _become(module: nn.Linear, kind: Kind) -> None:
    weight = module.weight.detach()
    del module._parameters["weight"]
    module.__class__ = Quantised
    made: Any = module
    made.kind = kind
    if kind == "int8":
        scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        codes = (weight / scales).round().to(torch.int8)
    else:
        flat = F.pad(weight.reshape(-1), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        scales = flat.abs().amax(1, keepdim=True).clamp(min=1e-12)
        table = levels().to(device=weight.device, dtype=weight.dtype)
        nearest_one = torch.bucketize(flat / scales, (table[1:] + table[:-1]) / 2)
        pairs = nearest_one.to(torch.uint8).view(-1, 2)
        codes = (pairs[:, 0] << 4) | pairs[:, 1]
        made.register_buffer("table", table, persistent=False)
    # Not in the state dict: an adapter file does not hold the backbone.
    made.register_buffer("codes", codes, persistent=False)
    made.register_buffer("scales", scales, persistent=False)


def quantise(tuned: TunedModel, kind: str) -> str:
    """Quantise the frozen linear layers in the blocks of `tuned`.

    Adapters do not change and train on the rounded weights. An adapter file then records `kind`, and loading it rounds
    the same weights in the same way. The exact weights are lost: `detach` returns the rounded backbone, and `merge` is
    refused.

    Args:
        tuned: a model with all its adapters attached. Norms, embeddings, convolutions and trained parameters keep
            their precision.
        kind: "int8" or "nf4".

    Returns:
        A sentence with the number of layers and the bytes before and after.

    Raises:
        CannotQuantise: the kind does not exist, there is nothing to quantise, or the weights are quantised already.
    """
    if kind not in get_args(Kind):
        raise CannotQuantise(f"There is no kind of quantisation {kind!r}. {nearest(kind, get_args(Kind))}")
    if tuned.quantised is not None:
        raise CannotQuantise(f"The frozen weights are {tuned.quantised} already.")
    if tuned._merged:
        raise CannotQuantise("An adapter is merged into the weights. Unmerge it first.")
    own = {id(p) for _, p in tuned.trainable()}
    shared = _uses(tuned.backbone)
    found = [
        module
        for block in tuned.description.blocks
        if block.exit is not None
        for module in block.exit.module.modules()
        if type(module) is nn.Linear
        and id(module.weight) not in own
        and not module.weight.requires_grad
        and shared[id(module.weight)] == 1
        and not module.weight.is_meta
    ]
    if not found:
        raise CannotQuantise(f"{tuned.description.facts.architecture} has no frozen linear layer in its blocks.")
    tuned.origin = weights_digest(tuned.description, tuned)
    before = sum(module.weight.numel() * module.weight.element_size() for module in found)
    for module in found:
        _become(module, kind)  # type: ignore[arg-type]
    after = sum(b.numel() * b.element_size() for module in found for b in module.buffers(recurse=False))
    tuned.quantised = kind
    return f"{len(found)} frozen linear layers in {kind}: {before / 2**20:.1f} MiB are now {after / 2**20:.1f} MiB"


def _uses(model: nn.Module) -> dict[int, int]:
    """Return the number of modules that have each parameter, by its id."""
    count: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            count[id(parameter)] = count.get(id(parameter), 0) + 1
    return count
