"""RLRR: each weight gains a copy of itself that is rescaled by rank one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.places import Projection
from ..layers.scale_shift import ScaleShift, Shift
from ..method import Method, register
from .ssl import Target


@register("rlrr", category="partial", family="reparameter", paper="2403.19067", year=2024, venue="CVPR")
class RLRR(Method):
    """W' = W + l * W * r, b' = b + f in each linear, l (out, 1), r (1, in), f (out,); a scale and shift after norms.

    The linears are q, k, v, proj, fc1, fc2. As in the code, though not in the paper's equation, the norms of each
    block, the final norm and the patch projection get y = gamma y + beta. All of it folds into the weights.

    r starts uniform within sqrt(6 / in), l within sqrt(6), f at zero, gamma N(1, 0.02), beta N(0, 0.02): step 0 is not
    the frozen model, W differs by about 7 %. The authors' Swin has `targets` with qkv in place of q, k and v,
    patch=False and merging=True. In a convolution l and r are one number for each output and input channel, the same
    for all places of the kernel (their ResNet has one for each row and column of it).
    """

    variants: ClassVar[tuple[dict[str, Any], ...]] = ({"targets": ("fc1", "fc2")}, {"patch": False})

    targets: tuple[Target, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
    """projections of each block"""
    norms: bool = True
    """scale and shift after norm1, norm2 and the final norm"""
    patch: bool = True
    """scale and shift after the patch projection"""
    merging: bool = False
    """also rescale the reductions between stages"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        if self.patch:
            yield backbone.patch.after(ScaleShift(backbone.patch.width))
        for block in backbone.blocks:
            if self.norms:
                for norm in (block.parts[name] for name in ("norm1", "norm2") if block.has(name)):
                    yield norm.after(ScaleShift(norm.width))
            for target in self.targets:
                for place in block.stored(target):
                    yield from _rescaled(place)
        if self.merging:
            between = (part for stage in backbone.stages for part in stage.parts.values())
            for part in between:
                if isinstance(part, Projection):
                    yield from _rescaled(part)
        if self.norms and backbone.has_norm:
            yield backbone.norm.after(ScaleShift(backbone.norm.width))


def _rescaled(place: Projection) -> Iterator[Edit]:
    yield place.reparametrize(RankOneScale(tuple(place.weight.shape)))
    yield place.after((KeyShift if place.name.endswith(".attn.k") else Shift)(place.width))


class KeyShift(Shift):
    """The shift of keys."""

    dormant = {"shift": "the softmax over keys does not see what is the same for every key"}


class RankOneScale(nn.Module):
    """W (out, in, ...) -> W + l * W * r."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        ones = [1] * (len(shape) - 2)
        bound = math.sqrt(6.0 / shape[1])
        self.outputs = nn.Parameter(torch.empty(shape[0], 1, *ones).uniform_(-math.sqrt(6.0), math.sqrt(6.0)))
        self.inputs = nn.Parameter(torch.empty(1, shape[1], *ones).uniform_(-bound, bound))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.outputs * weight * self.inputs
