"""Linear and convolution layers whose weight passes through edits before it is used.

Hooks see inputs and outputs, not weights. While an edit reparametrizes a projection, the layer's class is one of
these, and it is the plain class again afterwards; no key and no tensor of the backbone moves.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class EditedLinear(nn.Linear):
    """y = x edits(W)^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.vpeft_weight(self.weight), self.bias)  # type: ignore[operator]


class EditedConv2d(nn.Conv2d):
    """y = conv(x, edits(W)) + b, with the layer's own stride, padding, dilation and groups."""

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(input, self.vpeft_weight(self.weight), self.bias)  # type: ignore[operator]
        return out


EDITED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: EditedLinear, nn.Conv2d: EditedConv2d}


def weight_rewrite(module: nn.Module) -> tuple[tuple[nn.Module, type[nn.Module]], ...]:
    """The class to use while the weight of `module` is reparametrized; empty where there is none."""
    kind = EDITED.get(type(module))
    return ((module, kind),) if kind is not None else ()
