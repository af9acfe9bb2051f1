"""A linear layer whose rows belong to tasks, each with a changed weight of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones.places import Projection, stored_weight
from .task_rows import streams


class TaskWeights(nn.Module):
    """(y, x) of ((1 + T) B, ...) -> y for the shared rows, W_t x_t + b for those of a task.

    Args:
        place: the live linear layer, whose frozen weight and bias are read; it is no part of the adapter.
        changes: for each task, the module that makes W_t of W.
    """

    wants_tasks = True
    dormant: dict[str, str]

    def __init__(self, place: Projection, changes: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.__dict__["place"] = place
        self.own = nn.ModuleDict(changes)
        self.dormant = {}

    def forward(self, y: Tensor, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        place: Projection = self.__dict__["place"]
        weight, bias, rows = stored_weight(place.module), place.bias, streams(x, tasks)[1]
        out = [streams(y, tasks)[0]]
        for task in tasks:
            own = self.own[task](weight).to(rows[task].dtype)
            out.append(F.linear(rows[task], own, None if bias is None else bias.to(own.dtype)))
        return torch.cat(out)


class DropShared(nn.Module):
    """x ((1 + T) B, ...) -> dropout on the shared rows; where the streams begin, tasks get copies of the result."""

    wants_tasks = True

    def __init__(self, dropout: float, begins: bool) -> None:
        super().__init__()
        self.dropout, self.begins = nn.Dropout(dropout), begins

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        shared, own = streams(x, tasks)
        shared = self.dropout(shared)
        return torch.cat([shared, *(shared if self.begins else own[task] for task in tasks)])
