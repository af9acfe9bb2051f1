"""Fisher merging: the mean of the weights, each weighed by how much its model's predictions depend on it."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vpeft.batch import Batch
from vpeft.regimes.fusion.ground import Ground
from vpeft.regimes.fusion.sources import Source
from vpeft.regimes.fusion.way import Changes, Fusion, Way, register_way


@register_way("fisher", paper="2111.09832")
class Fisher(Way):
    """theta = sum_n F_n theta_n / sum_n F_n, F_n = mean over images x of sum_y p(y|x) (d log p(y|x) / d theta_n)^2.

    p are the probabilities of model n on images of its own task; labels are not looked at. F is exact: one gradient for
    each image and class. Code that squares the gradient of a whole batch computes something else.
    """

    needs = "classes"

    images: int = Field(default=64, gt=0)
    """of each task"""
    normalise: bool = True
    """whether each model's F is divided by its norm, so that no model outweighs the others"""
    floor: float = Field(default=1e-6, gt=0)
    """added to every F, so that what no prediction depends on is averaged"""

    def fuse(self, ground: Ground) -> Fusion:
        changes = ground.changes()
        fishers = [self._of(ground, *pair) for pair in zip(ground.sources, changes, strict=True)]
        return Fusion(weighed(changes, fishers, self.normalise, self.floor))

    def _of(self, ground: Ground, source: Source, changes: Changes) -> dict[str, Tensor]:
        values = {name: (value + changes[name]).requires_grad_() for name, value in ground.base.items()}
        found = {name: torch.zeros_like(value) for name, value in values.items()}
        seen = 0
        for batch in ground.batches(source, 16, images=self.images):
            for number in range(len(batch)):
                for gradients in self._gradients(ground, values, batch[number : number + 1]):
                    for total, gradient in zip(found.values(), gradients, strict=True):
                        total += gradient.square()
            seen += len(batch)
            ground.report(min(seen, self.images), self.images, f"images of {source.name}")
        return {name: value / seen for name, value in found.items()}

    def _gradients(self, ground: Ground, values: dict[str, Tensor], one: Batch) -> list[tuple[Tensor, ...]]:
        """sqrt(p(y|x)) d log p(y|x) for each class of one image."""
        logs = ground.outputs(values, one).float().log_softmax(-1)[0]
        weighed = logs.detach().exp().sqrt() * logs
        return [
            torch.autograd.grad(part, list(values.values()), retain_graph=True, materialize_grads=True)
            for part in weighed
        ]


def weighed(
    changes: list[dict[str, Tensor]], fishers: list[dict[str, Tensor]], normalise: bool, floor: float
) -> dict[str, Tensor]:
    """sum_n F_n tau_n / sum_n F_n, tensor by tensor, with F + `floor` and each over the norm of the whole F."""
    norms = [torch.stack([value.square().sum() for value in one.values()]).sum().sqrt() for one in fishers]
    factors = [1 / (norm + floor) if normalise else torch.ones(()) for norm in norms]
    found = {}
    for name in changes[0]:
        weights = torch.stack([factor * (one[name] + floor) for factor, one in zip(factors, fishers, strict=True)])
        found[name] = (weights * torch.stack([one[name] for one in changes])).sum(0) / weights.sum(0)
    return found
