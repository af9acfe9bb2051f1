"""Linear and convolution layers whose weight passes through edits before it is used.

Hooks see inputs and outputs, not weights. While an edit reparametrizes a projection, the layer's class is one of
these, and it is the plain class again afterwards; no key and no tensor of the backbone moves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class _EditedLayer(nn.Module):
    """A layer that computes with edits(W); in a batch of several adapters, with each one's weight on its own rows."""

    _with: Any  # (input, weight) -> output

    def forward(self, input: Tensor) -> Tensor:
        edits: Any = self.vpeft_weight
        if edits.by_image:
            mixed: Tensor = edits.each(self._with, input, self.weight)
            return mixed
        out: Tensor = self._with(input, edits(self.weight))
        return out


class EditedLinear(_EditedLayer, nn.Linear):
    """y = x edits(W)^T + b."""

    def _with(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input, weight, self.bias)


class _EditedConv(_EditedLayer):
    """y = conv(x, edits(W)) + b, with the layer's own stride, padding, dilation and groups."""

    def _with(self, input: Tensor, weight: Tensor) -> Tensor:
        compute: Any = self._conv_forward
        out: Tensor = compute(input, weight, self.bias)
        return out


class EditedConv2d(_EditedConv, nn.Conv2d):
    """A convolution over height and width; see `_EditedConv`."""


class EditedConv3d(_EditedConv, nn.Conv3d):
    """A convolution over time, height and width; see `_EditedConv`."""


class WeightInUse(nn.Module):
    """Mixed into a layer whose own forward reads `self.weight`: it then reads what the edits make of it.

    For layers that do more with their weight or input than torch's: padding of their own, standardised weights.
    """

    @property
    def weight(self) -> Tensor | None:
        plain, edits = self._parameters["weight"], self.__dict__.get("vpeft_weight")
        edited: Tensor | None = plain if edits is None else edits(plain)
        return edited


STANDARDISED: set[type[nn.Module]] = set()  # layers that normalise their weight before they use it
EDITED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: EditedLinear,
    nn.Conv2d: EditedConv2d,
    nn.Conv3d: EditedConv3d,
}


def weight_rewrite(module: nn.Module) -> tuple[tuple[nn.Module, type[nn.Module]], ...]:
    """The class to use while the weight of `module` is reparametrized; empty where there is none."""
    kind = EDITED.get(type(module))
    return ((module, kind),) if kind is not None else ()
