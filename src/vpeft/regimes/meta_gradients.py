"""Gradients of shared parameters through what each task makes of them: jointly, or after inner steps of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Order = Literal["joint", "first", "second"]
TaskLoss = Callable[[str, Tensors, Tensors], Tensor]
"""The loss of a task, of the shared tensors and the task's own."""


@dataclass(frozen=True)
class MetaGradients:
    """What one step gives.

    Attributes:
        loss: the mean over the tasks of the loss that the shared tensors answer for.
        shared: gradients of the shared tensors.
        own: gradients of each task's own tensors; empty after inner steps, which move them already.
        reached: each task's own tensors behind the inner steps; empty if there were none.
    """

    loss: float
    shared: Tensors
    own: dict[str, Tensors]
    reached: dict[str, Tensors] = field(default_factory=dict)


def meta_gradients(
    loss: TaskLoss,
    shared: Mapping[str, Tensor],
    own: Mapping[str, Mapping[str, Tensor]],
    *,
    order: Order = "joint",
    inner_steps: int = 10,
    inner_lr: float = 3e-3,
) -> MetaGradients:
    """The gradients of the mean over the tasks of min over own_t of loss_t(shared, own_t).

    `joint` takes the loss at the own tensors as they are, and gives their gradients too: one optimiser moves all.
    `first` and `second` let each task make `inner_steps` steps of gradient descent on its own tensors, from where they
    are, and take the loss behind them. `second` follows the shared tensors through the inner steps, `first` does not.

    Args:
        loss: of a task.
        shared: tensors of all tasks.
        own: those of each task.
        order: see above.
        inner_steps, inner_lr: of the inner descent.
    """
    whole = {name: value.detach().requires_grad_() for name, value in shared.items()}
    total, gradients = 0.0, {name: torch.zeros_like(value) for name, value in whole.items()}
    owned, ends = dict[str, Tensors](), dict[str, Tensors]()
    for task, tensors in own.items():
        mine = {name: value.detach().requires_grad_() for name, value in tensors.items()}
        reached = mine if order == "joint" else _descended(loss, task, whole, mine, order, inner_steps, inner_lr)
        value = loss(task, whole, reached)
        wanted = [*whole.values(), *(mine.values() if order == "joint" else ())]
        found = torch.autograd.grad(value, wanted, materialize_grads=True)
        for name, gradient in zip(whole, found, strict=False):
            gradients[name] += gradient / len(own)
        if order == "joint":
            owned[task] = {name: one / len(own) for name, one in zip(mine, found[len(whole) :], strict=True)}
        else:
            ends[task] = {name: one.detach() for name, one in reached.items()}
        total += float(value.detach()) / len(own)
    return MetaGradients(total, gradients, owned, ends)


def _descended(
    loss: TaskLoss, task: str, shared: Tensors, own: Tensors, order: Order, steps: int, rate: float
) -> Tensors:
    """A task's own tensors after some steps of gradient descent."""
    second = order == "second"
    fixed = shared if second else {name: value.detach() for name, value in shared.items()}
    for _ in range(steps):
        value = loss(task, fixed, own)
        found = torch.autograd.grad(value, list(own.values()), create_graph=second, materialize_grads=True)
        own = {name: one - rate * gradient for (name, one), gradient in zip(own.items(), found, strict=True)}
        if not second:
            own = {name: one.detach().requires_grad_() for name, one in own.items()}
    return own
