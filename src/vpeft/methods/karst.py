"""KARST: a sum of Kronecker products as the update of each weight, and scales and shifts of the features."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.scale_shift import ScaleShift
from ..layers.weight_change import WeightDelta, divisor
from ..method import Method, register
from .lora import Target, chosen_places

SPLIT = ("q", "k", "v")


@register("karst", category="partial", family="reparameter", paper="2502.06779", year=2025, venue="ICASSP")
class KARST(Method):
    """The update of a weight is a sum of N Kronecker products, and channels of the features are scaled and shifted.

    W' = W + s sum_i C_i (x) (A_i B_i), C_i (c, c'), A_i (D_out / c, R), B_i (R, D_in / c'); y = (1 + s1) * (W' x) + s2,
    s1 and s2 (D_out,). c and c' are `factor`, or the largest divisor below it. q, k and v of a block share C_i and B_i.
    B, s1 and s2 start at zero, so step 0 is the frozen model; C starts uniform within 1 / sqrt(c'), A within
    1 / sqrt(D_out / c), as the code stores it transposed. It folds into the weights.

    The paper's equations and the sites of the authors' code (Lucenova/KARST): s1, s2 behind the attention, proj and
    fc2. That code does not run as released, and has one number where the paper says channels. Attention gives each
    query a mean of the values, so s1 and s2 act on v, which equals acting behind it. Not verified: R, N and c of
    the published tables (here the code's, but 2 of its script's 8 products, the class's default, 0.42 % of ViT-B/16).
    """

    variants = ({"targets": ("fc1", "fc2")}, {"targets": ("conv",)}, {"targets": ("all",)})

    rank: int = Field(default=8, gt=0)
    """R"""
    kernels: int = Field(default=2, gt=0)
    """N"""
    factor: int = Field(default=8, gt=0)
    """most rows and columns of C"""
    scale: float = 0.125
    """s; m^2 / R in the code, with its default m = 1 and R = 8 here"""
    rescale: bool = True
    """whether s1 and s2 train"""
    targets: tuple[Target, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
    """projections of each block, as LoRA has them"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        shared: dict[tuple[str, ...], Kernels] = {}
        for place in chosen_places(backbone, self.targets, type(self).__name__):
            width, width_in = place.weight.flatten(1).shape
            above, _, name = place.name.rpartition(".")
            small = divisor(width, self.factor), divisor(width_in, self.factor)
            key = (above, *map(str, (*small, width_in))) if name in SPLIT else (place.name,)
            if key not in shared:
                shared[key] = Kernels(small, width_in, self.rank, self.kernels)
            yield place.reparametrize(KroneckerSum(shared[key], width, self.scale))
            if self.rescale and name not in ("q", "k", "fc1"):
                yield place.after(ScaleShift(place.width, std=0.0))


class Kernels(nn.Module):
    """C (N, c, c') and B (N, R, D_in / c'), which the projections of one input may share."""

    def __init__(self, small: tuple[int, int], width_in: int, rank: int, count: int) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.empty(count, *small))
        self.B = nn.Parameter(torch.zeros(count, rank, width_in // small[1]))
        for kernel in self.C:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))


class KroneckerSum(WeightDelta):
    """dW = s sum_i C_i (x) (A_i B_i)."""

    def __init__(self, kernels: Kernels, width: int, scale: float) -> None:
        super().__init__()
        self.kernels, self.scale = kernels, scale
        count, rows, _ = kernels.C.shape
        self.A = nn.Parameter(torch.empty(count, width // rows, kernels.B.shape[1]))
        bound = 1 / math.sqrt(width // rows)  # Kaiming-uniform with a = sqrt(5) on the transpose
        nn.init.uniform_(self.A, -bound, bound)

    def delta(self) -> Tensor:
        products = torch.einsum("nab,ncd->acbd", self.kernels.C, self.A @ self.kernels.B)
        return self.scale * products.flatten(2).flatten(0, 1)
