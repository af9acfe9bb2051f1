"""EFFT: two tensor banks, one for the attention's matrices and one for those of the MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..method import Method, register

Target = Literal["q", "k", "v", "proj", "fc1", "fc2"]
BANKS: dict[str, tuple[Target, ...]] = {"attn": ("q", "k", "v", "proj"), "mlp": ("fc1", "fc2")}


@register("efft", category="partial", family="reparameter", paper="2311.06749", year=2023, venue="arXiv")
class EFFT(Method):
    """Attention: y = x W^T + s x U_1 C_1j V_1, j = q, k, v, proj; MLP: + s x U_2 C_21 V_2 in fc1, its transpose in fc2.

    U_1 (D, R), V_1 (R, D), U_2 (D, R), V_2 (R, 4 D), C (R, R) of each matrix; U and V are shared by all blocks of one
    width. As in the code, dropout acts on the factors and not on activations. It folds into the weights.

    `zero` says which of U and V starts at zero in the bank of attention and in that of the MLP; everything else starts
    Xavier-uniform, so step 0 is the frozen model. The released code shares one C of each kind by all blocks
    (core="shared"), the paper's text and its count (0.28 %) have one in each block.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    rank: int = Field(default=32, gt=0)
    """R; 8, 16 or 32"""
    scale: float = 1.0
    """s; the authors choose it by task, 0.01 to 100"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """on the entries of U, C and V"""
    core: Literal["per_layer", "shared"] = "per_layer"
    """C in each block, or once for all"""
    zero: Literal["vv", "vu", "uv", "uu"] = "vv"
    """what starts at zero"""
    targets: tuple[Target, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
    """projections of each block"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        banks: dict[tuple[str, int, int], Bank] = {}
        cores: dict[tuple[tuple[str, int, int], str], Core] = {}
        for block in backbone.blocks:
            for (name, members), zero in zip(BANKS.items(), self.zero, strict=True):
                for target in (member for member in members if member in self.targets):
                    place = block.projection(target)
                    turned = target == "fc2"
                    sizes = (place.width, place.width_in) if turned else (place.width_in, place.width)
                    if place.weight.numel() != sizes[0] * sizes[1]:
                        raise MissingPlace(f"{place.name} is a convolution of a neighbourhood; EFFT changes linears.")
                    key = (name, *sizes)
                    if key not in banks:
                        banks[key] = Bank(*sizes, self.rank, zero)
                    if self.core == "per_layer" or (key, target) not in cores:
                        cores[key, target] = Core(self.rank)
                    bank, core = banks[key], cores[key, target]
                    yield place.reparametrize(BankedWeight(bank, core, turned, self.scale, self.dropout))


class Bank(nn.Module):
    """U (in, R) and V (R, out), of which `zero` starts at zero and the other Xavier-uniform."""

    def __init__(self, width_in: int, width: int, rank: int, zero: str) -> None:
        super().__init__()
        self.U, self.V = nn.Parameter(torch.zeros(width_in, rank)), nn.Parameter(torch.zeros(rank, width))
        nn.init.xavier_uniform_(self.U if zero == "v" else self.V)


class Core(nn.Module):
    """C (R, R), Xavier-uniform."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.C = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, rank)))


class BankedWeight(nn.Module):
    """W (out, in) -> W + s (U C V)^T, or W + s U C V where `turned`."""

    def __init__(self, bank: Bank, core: Core, turned: bool, scale: float, dropout: float) -> None:
        super().__init__()
        self.bank, self.core, self.turned, self.scale = bank, core, turned, scale
        self.dropout = nn.Dropout(dropout)

    def forward(self, weight: Tensor) -> Tensor:
        U, C, V = (self.dropout(factor) for factor in (self.bank.U, self.core.C, self.bank.V))
        delta = U @ C @ V
        out: Tensor = weight + self.scale * (delta if self.turned else delta.mT).reshape(weight.shape)
        return out
