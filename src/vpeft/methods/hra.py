"""HRA: a chain of Householder reflections on the input side of each weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightChange
from ..method import register
from .lora import OnProjections


class Reflections(WeightChange):
    """W -> W H_1 ... H_R, H_i = I - 2 u_i u_i^T / |u_i|^2, u (D_in, R)."""

    def __init__(self, width_in: int, rank: int, orthogonalised: bool) -> None:
        super().__init__()
        half = nn.init.kaiming_uniform_(torch.empty(width_in, (rank + 1) // 2), a=math.sqrt(5))
        self.u = nn.Parameter(half.repeat_interleave(2, dim=1)[:, :rank].clone())
        self.orthogonalised = orthogonalised

    def changed(self, weight: Tensor) -> Tensor:
        if self.orthogonalised:
            units = self._gram_schmidt()
            return weight - 2 * (weight @ units) @ units.T
        for unit in (self.u / self.u.norm(dim=0)).unbind(dim=1):
            weight = weight - 2 * torch.outer(weight @ unit, unit)
        return weight

    def _gram_schmidt(self) -> Tensor:
        found: list[Tensor] = []
        for vector in self.u.unbind(dim=1):
            for other in found:
                vector = vector - (other @ vector) * other
            found.append(vector / vector.norm())
        return torch.stack(found, dim=1)


@register("hra", family="reparameter", paper="2405.17484", year=2024, venue="NeurIPS")
class HRA(OnProjections):
    """Each weight's inputs pass R trained reflections: an orthogonal map of the features that is also of low rank.

    W' = W H_1 ... H_R, H_i = I - 2 u_i u_i^T / |u_i|^2, u (D_in, R). Neighbours start equal, u_1 = u_2 ..., and undo
    each other, so step 0 is the frozen model for an even R. It folds into W. A convolution is a matrix (out, in k k).

    orthogonalised: the u are first made orthogonal (Gram-Schmidt), so the chain is I - 2 U U^T and no start is the
    frozen model; equal neighbours have no such form, and all u start by themselves. The paper's penalty on the angles
    between the u is left out, as in peft.
    """

    rank: int = Field(default=8, gt=0)
    """R, the number of reflections"""
    orthogonalised: bool = False
    """whether the u are made orthogonal first"""

    @property
    def starts_as_identity(self) -> bool:
        return self.rank % 2 == 0 and not self.orthogonalised

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for place in self.places(backbone):
            width_in = place.weight[0].numel()
            layer = Reflections(
                width_in, min(self.rank, width_in) if self.orthogonalised else self.rank, self.orthogonalised
            )
            if self.orthogonalised:
                nn.init.kaiming_uniform_(layer.u, a=math.sqrt(5))
            yield place.reparametrize(layer)
