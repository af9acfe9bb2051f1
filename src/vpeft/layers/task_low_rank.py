"""A linear layer whose rows belong to tasks, with a low-rank update shared by all and one of each task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .low_rank import LowRank
from .task_rows import streams


class TaskLowRank(nn.Module):
    """(y, x) of ((1 + T) B, ...) -> W x + b + s B A drop(x) for the shared rows, W x + b + s' B_t A_t x_t for a task's.

    y is W x + b of the frozen layer for every row, and x its input. What is frozen is of the shared x, for a task too.

    Args:
        width_in, width: D_in of x and D_out of y.
        rank, scale: of B A, and s.
        task_rank, task_scale: of each B_t A_t, and s'.
        tasks: their names.
        dropout: on x, for the shared rows; where the streams begin, for the tasks as well.
        begins: whether the streams begin here, so that x_t is drop(x) of the shared rows.
        adds_shared: whether a task's rows get s B A drop(x) too.
    """

    wants_tasks = True
    dormant: dict[str, str]

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        rank: int,
        task_rank: int,
        tasks: Sequence[str],
        scale: float,
        task_scale: float,
        dropout: float,
        begins: bool,
        adds_shared: bool,
    ) -> None:
        super().__init__()
        self.shared = LowRank(width_in, width, rank, scale)
        self.own = nn.ModuleDict({task: LowRank(width_in, width, task_rank, task_scale) for task in tasks})
        self.dropout = nn.Dropout(dropout)
        self.begins, self.adds_shared, self.dormant = begins, adds_shared, {}

    def forward(self, y: Tensor, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        (frozen, _), (came, own) = streams(y, tasks), streams(x, tasks)
        came = self.dropout(came)
        shared = frozen + self.shared(came)
        base = shared if self.adds_shared else frozen
        return torch.cat([shared, *(base + self.own[t](came if self.begins else own[t]) for t in tasks)])
