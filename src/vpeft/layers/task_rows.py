"""One pass whose later rows belong to tasks: a batch (B, ...) becomes (B, ...) of all tasks and (B, ...) of each task.

Between `RepeatForTasks` and the layers that take rows away again, what passes is ((1 + T) B, ...): the shared stream
first, then the stream of each task that is on in the pass, in the order in which they are told. Everything that treats
the samples of a batch alike, such as windows, shifts, norms and the merging of patches, treats the streams alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def streams(rows: Tensor, tasks: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """((1 + T) B, ...) -> the shared stream (B, ...), and that of each task."""
    shared, *own = rows.chunk(1 + len(tasks))
    return shared, dict(zip(tasks, own, strict=True))


class RepeatForTasks(nn.Module):
    """x (B, ...) -> ((1 + T) B, ...): every stream starts as a copy of x."""

    wants_tasks = takes_time = channels_first = True

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        return x.repeat(1 + len(tasks), *[1] * (x.dim() - 1))


class FeaturesOfTasks(nn.Module):
    """x ((1 + T) B, ...) -> {task: (B, ...)}, which the heads of the tasks read in place of x."""

    wants_tasks = takes_time = gives_task_features = True

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> dict[str, Tensor]:
        return streams(x, tasks)[1]


class SharedRows(nn.Module):
    """x ((1 + T) B, ...) -> (B, ...): the shared stream alone goes on."""

    wants_tasks = takes_time = channels_first = True

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        return streams(x, tasks)[0]


class OwnRows(nn.Module):
    """x ((1 + T) B, ...) -> (B, ...): the stream of the only task that is on; with several, the shared stream."""

    wants_tasks = takes_time = channels_first = True

    def forward(self, x: Tensor, *, tasks: Sequence[str]) -> Tensor:
        shared, own = streams(x, tasks)
        return own[tasks[0]] if len(tasks) == 1 else shared
