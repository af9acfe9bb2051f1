"""CODA-Prompt: the prefix of an image is a sum of learnt components, weighed by what the frozen model sees in it."""

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
from ..method import BadField, Method, register

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("coda_prompt", category="addition", family="prefix", paper="2211.13218", year=2023, venue="CVPR")
class CODAPrompt(Method):
    """In each prompted block p = sum_m cos(q * A_m, K_m) P_m; its first half joins the keys, its second the values.

    q (Dq,) is the frozen model's pooled feature, A and K (M, Dq), P (M, l, D), * elementwise. Of the M components M / T
    belong to each of T tasks: those of earlier tasks are frozen, the present ones train, later ones are zero and weigh
    nothing. A task's rows of A, K and P start orthonormal to each other and to all before, as far as there is room.
    The loss gains mu (o(K) + o(A) + o(P)) for each block, o(X) = mean((X X^T - I)^2) over the rows so far.
    """

    components: int = Field(default=10, gt=0)
    """M / T: components of one task; the paper has 100 for 10 tasks"""
    tasks: int = Field(default=10, gt=0, le=1000)
    """T: how many tasks there can be"""
    length: int = Field(default=8, gt=1, multiple_of=2)
    """l: half keys, half values"""
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4)
    """blocks with a prefix; those that the backbone lacks are left out"""
    mu: float = Field(default=0.0, ge=0)
    """weight of orthogonality in the loss; the updated scripts have 0, the paper 0.1"""

    @property
    def starts_as_identity(self) -> bool:
        return False

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        backbone.require("attn.core")
        found = False
        for block in backbone.blocks:
            if block.index not in self.blocks:
                continue
            found, core = True, block.attn.core
            if core.per_window:
                raise MissingPlace(f"{block.name} attends within windows; CODA-Prompt needs one sequence.")
            layer = ComponentPrefix(
                self.tasks, self.components, self.length, core.heads, core.head_width, backbone.query.width
            )
            yield core.extend(layer, reads=(backbone.query,))
        if not found:
            raise MissingPlace(
                f"{backbone.facts.architecture} has {len(backbone.blocks)} blocks, and none of {list(self.blocks)}."
                " Name some that it has."
            )

    def begin_task(self, tuned: TunedModel, number: int, tasks: int | None = None) -> None:
        if max(number + 1, tasks or 0) > self.tasks:
            raise BadField(
                f"CODA-Prompt has room for {self.tasks} tasks, and the stream has {tasks or 'more'}. Write"
                f" coda_prompt(tasks={max(number + 1, tasks or 0)})."
            )
        for layer in _layers(tuned):
            layer.begin(number)

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        if not self.mu:
            return None
        return self.mu * torch.stack([layer.overlap() for layer in _layers(tuned)]).sum()


def _layers(tuned: TunedModel) -> list[ComponentPrefix]:
    return [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, ComponentPrefix)]


class ComponentPrefix(nn.Module):
    """q, k, v and the query -> l / 2 more keys and values in front, a weighted sum of components for each image.

    Args:
        tasks, components: T, and components of each task.
        length: l.
        heads, head_width: of the attention.
        query: Dq.
    """

    task: Tensor

    def __init__(self, tasks: int, components: int, length: int, heads: int, head_width: int, query: int) -> None:
        super().__init__()
        self.length, self.heads = length, heads
        wide = length * heads * head_width
        # one parameter for each task, so that no optimiser, with its decay, ever touches those of another
        self.prompts, self.keys, self.attention = (
            nn.ParameterList([nn.Parameter(torch.zeros(components, width), requires_grad=False) for _ in range(tasks)])
            for width in (wide, query, query)
        )
        self.register_buffer("task", torch.full((), -1, dtype=torch.int64))
        self.begin(0)

    @torch.no_grad()
    def begin(self, number: int) -> None:
        """Train the rows of one task, which start orthonormal to each other and to those before."""
        begins = self.task.is_meta or int(self.task) < number  # a meta tensor has no value
        for listed in (self.prompts, self.keys, self.attention):
            if begins:
                before = torch.cat(list(listed[:number])) if number else listed[0][:0]
                listed[number].copy_(orthonormal_rows(len(listed[number]), before))
            for other, parameter in enumerate(listed):
                parameter.requires_grad_(other == number)
        self.task.fill_(number)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prompts, keys, attention = (torch.cat(list(rows)) for rows in (self.prompts, self.keys, self.attention))
        seen = query.to(keys.dtype)[:, None] * attention
        weights = (functional.normalize(seen, dim=2) * functional.normalize(keys, dim=1)).sum(2)
        made = (weights @ prompts).to(k.dtype).reshape(query.shape[0], 2, self.length // 2, self.heads, -1)
        more_keys, more_values = made.permute(1, 0, 3, 2, 4)
        return q, torch.cat([more_keys, k], dim=2), torch.cat([more_values, v], dim=2)

    def overlap(self) -> Tensor:
        """o(K) + o(A) + o(P) over the rows of the tasks so far."""
        found = []
        for listed in (self.keys, self.attention, self.prompts):
            rows = torch.cat(list(listed[: int(self.task) + 1]))
            found.append((rows @ rows.T - torch.eye(len(rows), device=rows.device)).square().mean())
        return torch.stack(found).sum()


def orthonormal_rows(count: int, before: Tensor) -> Tensor:
    """`count` rows of length 1, from noise, orthogonal to each other and to the rows `before` (n, D) where D allows.

    Once there are D rows, further ones are noise of length 1.
    """
    width = before.shape[1]
    rows = before
    for _ in range(count):
        fresh = torch.randn(width, device=before.device, dtype=before.dtype)
        if len(rows) < width:
            for _ in range(2):  # the second time takes away what rounding left
                fresh = fresh - rows.T @ (rows @ fresh)
        rows = torch.cat([rows, functional.normalize(fresh, dim=0)[None]])
    return rows[len(before) :]
