"""Learnable tokens that are inserted into a sequence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone


class PromptTokens(nn.Module):
    """h (B, ...) -> (B, n, D): the same n tokens for every sample.

    Args:
        count: n.
        width: D, or the projection's input width where there is one.
        bound: the tokens start uniform in (-bound, bound).
        dropout: on the tokens after the projection, drawn for each sample.
        project: a linear map onto the backbone's width, perhaps shared with other layers.
    """

    def __init__(
        self, count: int, width: int, bound: float, dropout: float = 0.0, project: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)
        self.project = project

    def forward(self, hidden: Tensor) -> Tensor:
        return self.rows(self.tokens, hidden.shape[0])

    def rows(self, tokens: Tensor, batch: int) -> Tensor:
        """Projected and dropped copies of some tokens, (n, width) -> (B, n, D)."""
        if self.project is not None:
            tokens = self.project(tokens)
        return torch.as_tensor(self.dropout(tokens.expand(batch, -1, -1)))


def projection(width_in: int, width: int) -> nn.Linear:
    """The prompts' projection as VPT starts it: normal weights scaled by the fan out."""
    made = nn.Linear(width_in, width)
    nn.init.kaiming_normal_(made.weight, a=0, mode="fan_out")
    return made


def per_width(made: dict[int, nn.Linear], width_in: int, width: int) -> nn.Linear:
    """Return the projection onto this width; create it at the first call."""
    if width not in made:
        made[width] = projection(width_in, width)
    return made[width]


def xavier_bound(backbone: Backbone, width: int) -> float:
    """Return sqrt(6 / (values in one patch + width)), VPT's bound for its uniform start.

    If tokens are not patches (texts), the width of the first block replaces the number of values.
    """
    if backbone.inputs.layout == "tokens":
        return math.sqrt(6.0 / (backbone.blocks[0].dim + width))
    patch = backbone.patch.module.weight
    assert isinstance(patch, Tensor)
    return math.sqrt(6.0 / (patch[0].numel() + width))
