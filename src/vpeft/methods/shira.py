"""SHiRA: a sparse update of high rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.weight_change import WeightChange
from ..method import register
from .lora import OnProjections


class SparseEntries(WeightChange):
    """W -> W + values at the given flat places; the values start at zero."""

    index: Tensor
    dormant: dict[str, str]

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.int())
        self.values = nn.Parameter(torch.zeros(len(index)))

    def changed(self, weight: Tensor) -> Tensor:
        return weight.flatten().scatter_add(0, self.index.long(), self.values.to(weight.dtype)).reshape(weight.shape)


@register("shira", family="specification", paper="2406.13175", year=2024, venue="NeurIPS")
class SHiRA(OnProjections):
    """One or two percent of the entries of each weight train, all others are frozen; the update is of high rank.

    W' = W + S, S (D_out, D_in) zero but for R (D_in + D_out) trained entries, as many as a LoRA of rank R has. They
    start at zero, so step 0 is the frozen model. It folds into W.

    `mask`: random places (from `seed`), or those of the largest |W| (SHiRA-WM). The paper's structured, gradient and
    SNIP masks are left out; `gps` selects by gradients. The values are a vector, so weight decay and the optimiser's
    state touch nothing else. A layer with fewer entries than that trains all.
    """

    rank: int = Field(default=32, gt=0)
    """R, which sets the number of entries"""
    mask: Literal["random", "magnitude"] = "random"
    """which entries train"""
    seed: int = Field(default=0, ge=0)
    """of random places; each layer draws its own"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        generator = torch.Generator().manual_seed(self.seed)
        for place in self.places(backbone):
            weight = place.weight.detach().flatten(1)
            count = min(self.rank * sum(weight.shape), weight.numel())
            if self.mask == "magnitude":
                index = weight.flatten().abs().topk(count).indices
            else:
                index = torch.randperm(weight.numel(), generator=generator, device="cpu")[:count]
            yield place.reparametrize(SparseEntries(index))
