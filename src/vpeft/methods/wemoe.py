"""WEMoE: the MLPs of several models are mixed for each image, by a router that reads what enters the MLP."""

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


@register("wemoe", category="multi-task", family="reparameter", paper="2402.00433", year=2024, venue="ICML")
class WEMoE(Method):
    """MLP weights theta_0 + sum_n w_n tau_n for each image, w = mean over its tokens of R(h), h what enters the MLP.

    R is Linear(D, N) or Linear(D, D), ReLU, Linear(D, N): weights N(0, 0.01^2), the last bias `start`, the others 0.
    tau_n are changes of fc1 and fc2, weights and biases, which `vpeft fuse --how wemoe` takes from fine-tuned models;
    all other tensors are then merged by task arithmetic, and R learns on images without labels.

    Trained from nothing the tau_n start at zero and train too, which is ours, and no small number of parameters.
    """

    experts: int = Field(default=2, gt=0)
    """N"""
    layers: Literal[1, 2] = 2
    """linear maps of the router"""
    start: float = 0.3
    """bias of the last one: w before it has learnt"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            fc1, fc2 = block.mlp.fc1, block.mlp.fc2
            if fc1.is_conv or fc2.is_conv:
                raise MissingPlace(f"WEMoE mixes linear maps, and those of {block.name}.mlp are convolutions.")
            router = fc1.input.tap(Router(fc1.width_in, self.experts, self.layers, self.start))
            yield router
            for place in (fc1, fc2):
                layer = MixedWeights(place.width_in, place.width, self.experts)
                yield place.parallel(layer, reads=(place.input, router))


class Router(nn.Module):
    """Tokens (B, ..., D) -> w (B, N), the mean over the tokens; see `WEMoE`."""

    def __init__(self, width: int, experts: int, layers: int, start: float) -> None:
        super().__init__()
        self.steps = nn.Sequential(*([nn.Linear(width, width), nn.ReLU()] if layers == 2 else []))
        self.steps.append(nn.Linear(width, experts))
        for step in self.steps:
            if isinstance(step, nn.Linear):
                nn.init.normal_(step.weight, std=0.01)
                nn.init.zeros_(step.bias)
        last = self.steps[-1]
        assert isinstance(last, nn.Linear)
        nn.init.constant_(last.bias, start)

    def forward(self, tokens: Tensor) -> Tensor:
        weights: Tensor = self.steps(tokens)
        return weights.flatten(1, -2).mean(1)


class MixedWeights(nn.Module):
    """x (B, ..., D_in), w (B, N) -> sum_n w_n (tau_n x + c_n), (B, ..., D_out)."""

    def __init__(self, width_in: int, width: int, experts: int) -> None:
        super().__init__()
        self.changes = nn.Parameter(torch.zeros(experts, width, width_in))
        self.shift = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        # one matrix for each image: fewer products than each expert for each token
        mixed = torch.einsum("bn,noi->boi", weights, self.changes)
        out = torch.einsum("bti,boi->bto", x.flatten(1, -2), mixed) + (weights @ self.shift).unsqueeze(1)
        return out.reshape(*x.shape[:-1], -1)
