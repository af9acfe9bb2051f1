"""SNF: the shortcuts become normalizing flows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


class Flow(nn.Module):
    """z -> mu + exp(rho) * z, then n times z -> z + u tanh(w . z + b), for each token of (..., D).

    mu and rho (D,) start at zero, u and w (n, D) and b (n,) uniformly within 0.01 of zero.
    """

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.zeros(width))
        self.rho = nn.Parameter(torch.zeros(width))
        self.length = length
        if length:
            self.u = nn.Parameter(torch.empty(length, width).uniform_(-0.01, 0.01))
            self.w = nn.Parameter(torch.empty(length, width).uniform_(-0.01, 0.01))
            self.b = nn.Parameter(torch.empty(length).uniform_(-0.01, 0.01))

    def forward(self, z: Tensor) -> Tensor:
        z = self.mu + self.rho.exp() * z
        for i in range(self.length):
            z = z + self.u[i] * torch.tanh(z @ self.w[i] + self.b[i]).unsqueeze(-1)
        return z


@register("snf", category="addition", family="adapter", paper="CVPR 2023", year=2023, venue="CVPR")
class SNF(Method):
    """The identity shortcut of each residual add becomes a small invertible map; the branch stays as it is.

    x = F_1(x) + attn(LN(x)), x = F_2(x) + MLP(LN(x)), with F an affine map of each channel, z -> mu + exp(rho) * z, and
    then n planar flows z -> z + u tanh(w . z + b); mu, rho, u, w (D,), b a number. The branch reads the x before F.

    n = 0 fits the count of the abstract (0.036 M) and is the frozen model at step 0; n = 16, the default of the code,
    is only near it. That code skips LayerScale on timm's blocks; here it stays. `information` is the weight of
    the penalty max(0, sum rho), summed over the flows, which the code computes and never uses.
    """

    length: int = Field(default=0, ge=0)
    """n"""
    information: float = Field(default=0.0, ge=0.0)
    """weight of the penalty"""

    @property
    def starts_as_identity(self) -> bool:
        return self.length == 0

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            for name in ("skip1", "skip2"):
                if block.has(name):
                    yield block.parts[name].replace(Flow(block.dim, self.length))

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        if not self.information:
            return None
        flows = [module for module in tuned.adapter().modules() if isinstance(module, Flow)]
        return self.information * torch.stack([flow.rho.sum().relu() for flow in flows]).sum()
