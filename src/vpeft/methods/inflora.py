"""InfLoRA: for each task a low-rank update whose inputs lie where earlier tasks have none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..method import BadField, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("inflora", category="partial", family="reparameter", paper="2404.00228", year=2024, venue="CVPR")
class InfLoRA(Method):
    """y = W x + sum_j B_j A_j x over the tasks so far; A_t is designed from the task's inputs, and only B_t trains.

    C = (1 / n) sum x x^T over what enters the projection, (d, d). Before task t, A_t (R, d) has as rows the R first
    left singular vectors of C - M M^T C, divided by sqrt(3), and B_t = 0. After it, the basis M (d, m) of the earlier
    tasks' inputs gains the first left singular vectors of C - M M^T C, as many as needed until the share of the squared
    singular values of C that M holds reaches a threshold, which goes linearly from `low` to `high` over the tasks.

    DualGPM keeps the complement of M once that is smaller; the projection is the same, and here M is kept. As in the
    code, the first task's basis stops one direction before the threshold is reached.
    """

    variants = ({"targets": ("fc1",)},)

    rank: int = Field(default=10, gt=0)
    """R"""
    targets: tuple[Literal["q", "k", "v", "proj", "fc1", "fc2"], ...] = ("k", "v")
    """projections of each block"""
    low: float = Field(default=0.95, gt=0, le=1)
    """threshold of the first task; 0.98 for ImageNet-R"""
    high: float = Field(default=1.0, gt=0, le=1)
    """threshold that the tasks go towards"""
    tasks: int = Field(default=10, gt=0, le=1000)
    """how many tasks there can be"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        for block in backbone.blocks:
            spaces: dict[str, InputSpace] = {}
            for target in self.targets:
                place = block.projection(target)
                # q, k and v are given the same
                space = spaces.setdefault("qkv" if target in "qkv" else target, InputSpace(place.width_in))
                yield place.parallel(TaskLowRank(space, place.width_in, place.width, self.rank, self.tasks))

    def begin_task(self, tuned: TunedModel, number: int, tasks: int | None = None) -> None:
        if max(number + 1, tasks or 0) > self.tasks:
            raise BadField(
                f"InfLoRA has room for {self.tasks} tasks, and the stream has {tasks or 'more'}. Write"
                f" inflora(tasks={max(number + 1, tasks or 0)})."
            )
        for layer in _layers(tuned):
            layer.begin(number)

    @torch.no_grad()
    def prepare(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        layers = [layer for layer in _layers(tuned) if not bool(layer.designed[int(layer.task)])]
        if not layers:
            return
        seen = _measured(tuned, layers, batches)
        for layer in layers:
            layer.design(seen[layer.space])

    @torch.no_grad()
    def end_task(self, tuned: TunedModel, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        layers = _layers(tuned)
        for space, matrix in _measured(tuned, layers, batches).items():
            task = int(next(layer.task for layer in layers if layer.space is space))
            space.add(matrix, self.low + (self.high - self.low) * task / self.tasks)


def _layers(tuned: TunedModel) -> list[TaskLowRank]:
    return [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, TaskLowRank)]


def _measured(
    tuned: TunedModel, layers: list[TaskLowRank], batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[InputSpace, Tensor]:
    """C of each space, over all tokens of the batches, in eval mode."""
    totals: dict[InputSpace, Tensor] = {}
    counts: dict[InputSpace, int] = {}
    first = {layer.space: layer for layer in reversed(layers)}

    def watch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, TaskLowRank)
        rows = given[0].reshape(-1, given[0].shape[-1]).double()
        product = rows.T @ rows
        totals[module.space] = totals[module.space] + product if module.space in totals else product
        counts[module.space] = counts.get(module.space, 0) + len(rows)

    modes = {module: module.training for module in tuned.modules()}
    tuned.eval()
    handles = [layer.register_forward_pre_hook(watch) for layer in first.values()]
    device = next(tuned.parameters()).device
    try:
        for images, _ in batches:
            tuned.features(images.to(device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {space: totals[space] / counts[space] for space in first if space in totals}


class InputSpace(nn.Module):
    """An orthonormal basis M of what earlier tasks put into a projection: `count` columns of `basis` (d, d)."""

    basis: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(width, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def outside(self, matrix: Tensor) -> Tensor:
        """C - M M^T C, in double precision."""
        basis = self.basis.double()
        return matrix - basis @ (basis.T @ matrix)

    def add(self, matrix: Tensor, threshold: float) -> None:
        """Let M hold the share `threshold` of the squared singular values of C."""
        total = torch.linalg.svdvals(matrix).square().sum()
        left, values, _ = torch.linalg.svd(self.outside(matrix))
        shares, held = values.square() / total, int(self.count)
        if not held:
            more = max(1, int((shares.cumsum(0) < threshold).sum()))
        else:
            inside = 1 - shares.sum()
            so_far = inside + torch.cat([shares.new_zeros(1), shares.cumsum(0)[:-1]])
            more = int((so_far < threshold).sum())
        more = min(more, len(matrix) - held)
        self.basis[:, held : held + more] = left[:, :more].to(self.basis)
        self.count.fill_(held + more)


class TaskLowRank(nn.Module):
    """x -> sum_j B_j A_j x over all tasks, (..., D_in) -> (..., D_out); B_j of tasks to come are zero.

    Before the task's data are seen, A_t is drawn as in LoRA.
    """

    A: Tensor
    task: Tensor
    designed: Tensor

    def __init__(self, space: InputSpace, width_in: int, width: int, rank: int, tasks: int) -> None:
        super().__init__()
        self.space, self.rank = space, rank
        drawn = torch.empty(tasks, rank, width_in)
        for one in drawn:
            nn.init.kaiming_uniform_(one, a=math.sqrt(5))
        self.register_buffer("A", drawn)
        self.B = nn.ParameterList(
            [nn.Parameter(torch.zeros(width, rank), requires_grad=not number) for number in range(tasks)]
        )
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))
        self.register_buffer("designed", torch.zeros(tasks, dtype=torch.bool))

    def begin(self, number: int) -> None:
        """Train the update of one task."""
        self.task.fill_(number)
        for other, parameter in enumerate(self.B):
            parameter.requires_grad_(other == number)

    def design(self, matrix: Tensor) -> None:
        """Make A of the present task from C (d, d); of fewer directions than R the rest of A is zero."""
        left, _, _ = torch.linalg.svd(self.space.outside(matrix))
        rows = left[:, : self.rank].T / math.sqrt(3)
        number = int(self.task)
        self.A[number].zero_()
        self.A[number, : len(rows)] = rows.to(self.A)
        self.designed[number] = True

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.linear(x, self.A.flatten(0, 1)), torch.cat(list(self.B), dim=1))

    def weight_delta(self) -> tuple[Tensor, None]:
        """The update of the weight (D_out, D_in)."""
        return torch.cat(list(self.B), dim=1) @ self.A.flatten(0, 1), None
