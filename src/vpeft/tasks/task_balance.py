"""How the losses of several tasks are weighed against each other: fixed numbers, uncertainty, or gradient norms.

A way is a class with a `name`; it is a small module that trains beside the heads and that no adapter file keeps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..backbones.features import Features
from ..batch import Batch
from ..errors import VpeftError, nearest
from ..injection.heads import Heads

BALANCE = ":balance"
"""Under this name training outputs of several heads hold the way in which their losses are weighed."""
_FEATURES = ":features:"


class NoComparison(VpeftError):
    """Losses are to be weighed by something that a batch does not show."""


class TaskBalance(nn.Module):
    """Weighs the losses of tasks.

    Class attributes:
        name: as users write it.
        needs_features: whether it looks at the features that each head reads.
    """

    name: ClassVar[str] = ""
    needs_features: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    @property
    def dormant(self) -> dict[str, str]:
        """Its tensors, which no output depends on: they act on the losses."""
        return {
            name: "it weighs the losses of several tasks, which no output shows" for name, _ in self.named_parameters()
        }

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The present weight of each task's loss."""

    @abstractmethod
    def combined(self, losses: Mapping[str, Tensor], features: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """Named parts whose sum is minimised.

        Args:
            losses: of the tasks of the batch, each a scalar.
            features: what the head of each task read, if `needs_features`.
        """


class Uncertainty(TaskBalance):
    """sum over tasks of exp(-s) L + s / 2, with a learnt s = log(variance) for each task, 0 at first.

    Source: Kendall, Gal and Cipolla, arXiv 1705.07115, in the form of their classification loss for every task; their
    factor 1/2 of a regression loss is left out, which shifts that task's s by log 2.
    """

    name = "uncertainty"

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in self.tasks})

    def weights(self) -> dict[str, float]:
        return {task: float((-value.detach()).exp()) for task, value in self.log_variance.items()}

    def combined(self, losses: Mapping[str, Tensor], features: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        found = {}
        for task, loss in losses.items():
            s = self.log_variance[task]
            found[task] = (-s).exp() * loss + s / 2
        return found


class GradientNorm(TaskBalance):
    """Weights w, whose mean is 1, that bring the tasks' gradients to norms which fit their rates of learning.

    With n the norm of the gradient of a task's loss L in the features that its head reads, and the rate r = (L / L at
    the first step) / (the mean of that over the tasks), the weights minimise sum |w n - mean(w n) r^alpha|, where the
    second term is a constant. Source: GradNorm, Chen et al., arXiv 1711.02257, with its alpha of 1.5. There the norm is
    taken in the weights of the last shared layer; here it is in the features, which every backbone and method has, and
    w = T softmax(a) in place of a division after each step.
    """

    name = "gradient_norm"
    needs_features = True
    alpha = 1.5

    first: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.scores = nn.Parameter(torch.zeros(len(self.tasks)))
        self.register_buffer("first", torch.full((len(self.tasks),), torch.nan))

    def _weights(self) -> Tensor:
        return len(self.tasks) * self.scores.softmax(0)

    def weights(self) -> dict[str, float]:
        return dict(zip(self.tasks, self._weights().detach().tolist(), strict=True))

    def combined(self, losses: Mapping[str, Tensor], features: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        if set(losses) != set(self.tasks):
            raise NoComparison(
                "weights = gradient_norm compares the gradients of all tasks in each step, and a batch has targets for"
                f" {', '.join(losses)} of {', '.join(self.tasks)}. Give samples with targets for all tasks, or choose"
                " fixed weights or uncertainty."
            )
        norms = []
        for task in self.tasks:
            read = [one for one in features.get(task, ()) if one.requires_grad]
            if not read:
                raise NoComparison(
                    "weights = gradient_norm compares gradients in the features that the heads read, and no gradient"
                    f" reaches those of {task}: nothing before the heads trains. Choose fixed weights or uncertainty."
                )
            found = torch.autograd.grad(losses[task], read, retain_graph=True, allow_unused=True)
            squares = [one.detach().float().square().sum() for one in found if one is not None]
            norms.append(torch.stack(squares).sum().sqrt() if squares else losses[task].new_zeros(()))
        now = torch.stack([losses[task].detach().float() for task in self.tasks])
        if bool(self.first.isnan().any()):
            self.first.copy_(now)
        ratios = now / self.first.clamp(min=torch.finfo(now.dtype).tiny)
        weights = self._weights()
        weighted = weights * torch.stack(norms)
        target = weighted.detach().mean() * (ratios / ratios.mean()) ** self.alpha
        parts = {task: weight * losses[task] for task, weight in zip(self.tasks, weights.detach(), strict=True)}
        distance = (weighted - target).abs().sum()
        # Its gradient moves the weights, its value is no part of the loss.
        return {**parts, "balance": distance - distance.detach()}


_WAYS: dict[str, type[TaskBalance]] = {kind.name: kind for kind in (Uncertainty, GradientNorm)}


def balances() -> tuple[str, ...]:
    """The names of all ways, fixed weights first."""
    return ("fixed", *_WAYS)


def make_balance(name: str, tasks: Sequence[str]) -> TaskBalance | None:
    """The way of this name for tasks; None for fixed weights. `NoComparison` names the nearest."""
    if name == "fixed":
        return None
    if name not in _WAYS:
        raise NoComparison(f"There is no way {name!r} to weigh losses. {nearest(name, balances())}")
    return _WAYS[name](tasks)


class BalancedHeads(Heads):
    """Several heads, and beside them what weighs their losses; in training it is among the outputs, as `BALANCE`."""

    def __init__(self, heads: Mapping[str, nn.Module], balance: TaskBalance) -> None:
        super().__init__(heads)
        if "balance" in heads:
            raise NoComparison("'balance' cannot be the name of a task where losses are weighed. Take another name.")
        self.balance = balance
        self.training_only = ("balance",)

    def forward(self, features: Features, batch: Batch | None = None) -> Any:
        """As `Heads`; in training always a mapping."""
        outputs = super().forward(features, batch)
        if not self.training:
            return outputs
        made: dict[str, Any] = {batch.task: outputs} if batch is not None and batch.task else dict(outputs)
        if self.balance.needs_features:
            for task in list(made):
                made[_FEATURES + task] = [*features.for_task(task).values()]
        made[BALANCE] = self.balance
        return made


def balance_of(outputs: Any) -> tuple[TaskBalance | None, dict[str, list[Tensor]]]:
    """What weighs the losses, among the outputs of a pass in training, and the features that each head read."""
    if not isinstance(outputs, Mapping) or BALANCE not in outputs:
        return None, {}
    features = {key.removeprefix(_FEATURES): value for key, value in outputs.items() if key.startswith(_FEATURES)}
    return outputs[BALANCE], features
