"""What a task makes of features that all tasks share: a gain and a shift of each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TaskAffine(nn.Module):
    """(a (..., D), task) -> gain_t * a + shift_t; gains start at one, shifts at zero."""

    dormant: dict[str, str]

    def __init__(self, width: int, tasks: Sequence[str]) -> None:
        super().__init__()
        self.gain = nn.ParameterDict({task: nn.Parameter(torch.ones(width)) for task in tasks})
        self.shift = nn.ParameterDict({task: nn.Parameter(torch.zeros(width)) for task in tasks})
        self.dormant = {}

    def forward(self, a: Tensor, task: str) -> Tensor:
        out: Tensor = self.gain[task] * a + self.shift[task]
        return out


class TaskFeatures(nn.Module):
    """(h, a_1, ..., a_L) -> {task: h + sum_l (gain_tl * a_l + shift_tl)}, which the heads of the tasks read for h."""

    wants_tasks = takes_time = gives_task_features = True

    def __init__(self, parts: Sequence[TaskAffine]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, hidden: Tensor, *given: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        return {task: hidden + self.added(hidden, given, task) for task in tasks}

    def added(self, hidden: Tensor, given: Sequence[Tensor], task: str) -> Tensor:
        """What one task adds; tokens (B, H W, D) are laid as the map (B, H, W, D) where h is one."""
        total = torch.zeros_like(hidden)
        for part, one in zip(self.parts, given, strict=True):
            total = total + part(one.reshape(hidden.shape), task)
        return total


class TaskFeatureRows(TaskFeatures):
    """(h (B, ...), a_1, ...) -> ((1 + T) B, ...): h, and behind it what `TaskFeatures` gives for each task."""

    gives_task_features = False

    def forward(self, hidden: Tensor, *given: Tensor, tasks: Sequence[str]) -> Tensor:  # type: ignore[override]
        return torch.cat([hidden, *(hidden + self.added(hidden, given, task) for task in tasks)])


class TiedBottleneck(nn.Module):
    """x (..., D) -> s (W^T ReLU(W x + b) + c), with one W (R, D) for both ways; s is trained and starts at zero."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        nn.init.zeros_(self.down.bias)
        self.shift = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.down(x))
        return self.scale * (F.linear(inner, self.down.weight.mT) + self.shift)


class Times(nn.Module):
    """a -> s a."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, a: Tensor) -> Tensor:
        return a if self.scale == 1.0 else self.scale * a
