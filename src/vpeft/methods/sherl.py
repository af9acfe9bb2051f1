"""SHERL: earlier outputs are gathered without the redundant ones and go through the last frozen block."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register

EPS = 1e-6
FEW = 32


@register("sherl", category="addition", family="side", paper="2407.07523", year=2024, venue="ECCV")
class SHERL(Method):
    """What enters the last block is made anew from all that came before it; gradients pass that block alone.

    h_0 (B, N, D) the embedding, h_1 ... h_T the outputs of the blocks before the last. x_l = (W_2 u + b_2 + u) *
    sigmoid(W_3 u + b_3), u = ReLU(W_1 h_l + b_1), m channels, maps of their own for each l; guide x_T. For l < T, token
    by token: rho_l = sum_j<T ReLU(cos(x_l, x_j)), with j = l; w_l = ReLU(f (x_l * x_T)) / rho_l, divided by their sum.
    z = W_out ReLU(sum_l w_l x_l + x_T) + b_out + tanh(c / 0.1) h_T enters the last block. c starts at zero and the maps
    as nn.Linear does, so step 0 is not the frozen model.

    This is the form of the authors' code for CLIP-ViL; their two others differ. On stages of several widths, which they
    do not treat, the last stage alone is read and h_0 is what enters it.
    """

    reduction: int = Field(default=4, gt=0)
    """D / m; 2 to 8 in the code"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        last = backbone.blocks[-1]
        alike = [block for block in backbone.blocks if (block.dim, block.grid) == (last.dim, last.grid)]
        if len(alike) < 2:
            raise MissingPlace(
                f"SHERL gathers outputs of blocks before the last one, of its width and grid; {last.name} of"
                f" {backbone.facts.architecture} is the only one with {last.dim} channels on {last.grid}."
            )
        layer = EarlyRoute(last.dim, max(1, last.dim // self.reduction), len(alike))
        yield last.before(layer, reads=(alike[0].input, *alike[:-2]))


class GatedMap(nn.Module):
    """h (..., D) -> (W_2 u + b_2 + u) * sigmoid(W_3 u + b_3), u = ReLU(W_1 h + b_1)."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, narrow)
        self.second, self.gate = nn.Linear(narrow, narrow), nn.Linear(narrow, narrow)

    def forward(self, h: Tensor) -> Tensor:
        u = self.first(h).relu()
        out: Tensor = (self.second(u) + u) * self.gate(u).sigmoid()
        return out


class EarlyRoute(nn.Module):
    """(h_T, h_0, ..., h_{T-1}), each (B, ..., D) -> z, of the same shape."""

    def __init__(self, width: int, narrow: int, count: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(GatedMap(width, narrow) for _ in range(count))
        self.guide, self.up = nn.Linear(narrow, 1), nn.Linear(narrow, width)
        self.keep = nn.Parameter(torch.zeros(1))
        if count == 2 or narrow < FEW:
            why = (
                f"of {count - 1} earlier outputs in {narrow} channels none may be chosen, where a ReLU has no gradient"
            )
            shallow = (key for key, _ in self.named_parameters() if key.startswith(("downs.", "guide.")))
            self.dormant = {key: why for key in shallow if not key.startswith(f"downs.{count - 1}.")}

    def forward(self, hidden: Tensor, *earlier: Tensor) -> Tensor:
        xs = [down(h.reshape(hidden.shape)) for down, h in zip(self.downs, (*earlier, hidden), strict=True)]
        shallow, guide = torch.stack(xs[:-1], dim=-2), xs[-1][..., None, :]  # (..., T, m) and (..., 1, m)
        unit = shallow / (shallow.square().sum(dim=-1, keepdim=True).sqrt() + EPS)
        redundancy = (unit @ unit.mT).relu().sum(dim=-1, keepdim=True)
        weight = self.guide(shallow * guide).relu() / redundancy
        weight = weight / (weight.sum(dim=-2, keepdim=True) + EPS)
        gathered = (weight * shallow).sum(dim=-2) + xs[-1]
        out: Tensor = self.up(gathered.relu()) + torch.tanh(self.keep / 0.1) * hidden
        return out
