"""A weight that is scaled by input channel, by output channel, or by both."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightScale(nn.Module):
    """W -> diag(r) W diag(l), for a linear or a (grouped) convolution (out, in / groups, ...).

    Args:
        shape: of the weight.
        groups: of the convolution.
        inputs: train l (in,).
        outputs: train r (out,).

    Both start at one, so step 0 is the frozen layer. The layer's bias is not scaled.
    """

    def __init__(self, shape: tuple[int, ...], *, groups: int = 1, inputs: bool = True, outputs: bool = True) -> None:
        super().__init__()
        self.groups = groups
        self.inputs = nn.Parameter(torch.ones(shape[1] * groups)) if inputs else None
        self.outputs = nn.Parameter(torch.ones(shape[0])) if outputs else None

    def forward(self, weight: Tensor) -> Tensor:
        grouped = weight.reshape(self.groups, -1, weight.shape[1], weight[0, 0].numel())
        if self.inputs is not None:
            grouped = grouped * self.inputs.reshape(self.groups, 1, -1, 1)
        if self.outputs is not None:
            grouped = grouped * self.outputs.reshape(self.groups, -1, 1, 1)
        return grouped.reshape(weight.shape)
