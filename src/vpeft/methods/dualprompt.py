"""DualPrompt: keys and values that all tasks share in the first blocks, and those of one task in the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..backbones.points import MissingPlace
from ..layers.prefix import Prefix
from ..layers.pull import Pull
from ..method import BadField, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("dualprompt", category="addition", family="prefix", paper="2204.04799", year=2022, venue="ECCV")
class DualPrompt(Method):
    """G: a prefix in the first blocks. E: in the next blocks one prefix for each task, chosen by the image.

    In each such block K <- [p_k; K], V <- [p_v; V] with p_k, p_v (l, D). q is the frozen model's pooled feature. In
    training the present task's E is taken, and the loss gains -pull * mean cos(q, K_t); in evaluation that of
    argmax_m cos(q, K_m) over the tasks so far, for each image by itself. The prefix of task t starts as a copy of that
    of task t - 1. Only the present task's E and key train.

    Departures: the public port's reshape mixes keys and values between the images of a batch, and its choice is a vote
    of the batch; here each image has its own. Keys of tasks to come are left out of the choice.
    """

    variants = ({"shared_blocks": (0,), "task_blocks": (1,)},)

    shared_blocks: tuple[int, ...] = (0, 1)
    """blocks with G; those that the backbone lacks are left out"""
    task_blocks: tuple[int, ...] = (2, 3, 4)
    """blocks with E; those that the backbone lacks are left out"""
    shared_length: int = Field(default=5, gt=0)
    """l of G"""
    task_length: int = Field(default=5, gt=0)
    """l of E; the paper's recall is 20, the port has 5"""
    tasks: int = Field(default=10, gt=0, le=1000)
    """how many tasks there can be"""
    pull: float = Field(default=1.0, ge=0)
    """weight of the part of the loss that draws the task's key to its images"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        keys = TaskKeys(self.tasks, backbone.query.width)
        found = False
        for block in backbone.blocks:
            core = block.attn.core
            if core.per_window and block.index in (*self.shared_blocks, *self.task_blocks):
                raise MissingPlace(f"{block.name} attends within windows; DualPrompt needs one sequence.")
            if block.index in self.shared_blocks:
                shared = Prefix(core.heads, core.head_width, self.shared_length, start="uniform", compensate=False)
                yield core.extend(shared)
            if block.index in self.task_blocks:
                found = True
                prefix = TaskPrefix(keys, core.heads, core.head_width, self.task_length)
                yield core.extend(prefix, reads=(backbone.query,))
        if not found:
            raise MissingPlace(
                f"{backbone.facts.architecture} has {len(backbone.blocks)} blocks, and none of the task_blocks"
                f" {list(self.task_blocks)}. Name some that it has."
            )

    def begin_task(self, tuned: TunedModel, number: int, tasks: int | None = None) -> None:
        if max(number + 1, tasks or 0) > self.tasks:
            raise BadField(
                f"DualPrompt has room for {self.tasks} tasks, and the stream has {tasks or 'more'}. Write"
                f" dualprompt(tasks={max(number + 1, tasks or 0)})."
            )
        for edit in tuned.adapter().edits:
            if isinstance(edit.layer, TaskPrefix):
                edit.layer.begin(number)

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        layers = [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, TaskPrefix)]
        found = layers[0].keys.pulled.take() if layers else None
        return None if found is None else -self.pull * found


class TaskKeys(nn.Module):
    """One key (Dq,) for each task, and the choice of a task for each image.

    `task` is the number of the present task, the highest that may be chosen.
    """

    task: Tensor

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        drawn = [nn.Parameter(torch.empty(width).uniform_(-1, 1), requires_grad=not number) for number in range(tasks)]
        self.of_task = nn.ParameterList(drawn)
        self.register_buffer("task", torch.zeros((), dtype=torch.int64))
        self.pulled = Pull()

    def forward(self, query: Tensor) -> Tensor:
        """q (B, Dq) -> the choice (B, tasks): 1 for the chosen task, else 0."""
        keys = functional.normalize(torch.stack(list(self.of_task)), dim=1)
        similar = functional.normalize(query.to(keys.dtype), dim=1) @ keys.T
        numbers = torch.arange(len(keys), device=similar.device)
        present = (numbers == self.task).to(similar.dtype).expand_as(similar)
        self.pulled.note((similar * present).sum() / query.shape[0])
        if self.training:
            return present
        chosen = similar.masked_fill(numbers > self.task, -torch.inf).argmax(dim=1)
        return functional.one_hot(chosen, len(keys)).to(similar.dtype)


class TaskPrefix(nn.Module):
    """q, k, v and the query -> n more keys and values in front, those of the chosen task, for each image its own.

    Args:
        keys: of the tasks, shared by all such layers.
        heads, head_width: h and d.
        count: n.
    """

    def __init__(self, keys: TaskKeys, heads: int, head_width: int, count: int) -> None:
        super().__init__()
        self.keys, self.heads, self.count = keys, heads, count
        shape, tasks = (2, count, heads * head_width), len(keys.of_task)
        self.of_task = nn.ParameterList(
            [nn.Parameter(torch.empty(shape).uniform_(-1, 1), requires_grad=not number) for number in range(tasks)]
        )

    @torch.no_grad()
    def begin(self, number: int) -> None:
        """Train the tensors of one task, which start as those of the task before."""
        if number and int(self.keys.task) <= number:
            self.of_task[number].copy_(self.of_task[number - 1])
        self.keys.task.fill_(number)
        for listed in (self.of_task, self.keys.of_task):
            for other, parameter in enumerate(listed):
                parameter.requires_grad_(other == number)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen = self.keys(query)
        rows = (chosen @ torch.stack(list(self.of_task)).flatten(1)).to(k.dtype)
        keys, values = rows.reshape(rows.shape[0], 2, self.count, self.heads, -1).permute(1, 0, 3, 2, 4)
        return q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
