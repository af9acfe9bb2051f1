"""AdaLoRA: low-rank updates in the form of singular values, whose ranks follow their importance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..errors import VpeftError
from ..layers.weight_change import WeightDelta
from ..method import register
from .lora import OnProjections

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel

FACTORS = ("A", "E", "B")


class Triplets(WeightDelta):
    """dW = s B diag(E) A, A (R, in) and B (out, R) from N(0, 0.02), E (R, 1) zero; and how important each entry is."""

    kept: Tensor

    def __init__(self, width_in: int, width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, width_in) * 0.02)
        self.E = nn.Parameter(torch.zeros(rank, 1))
        self.B = nn.Parameter(torch.randn(width, rank) * 0.02)
        self.scale = scale
        for name in FACTORS:  # saved, so that training can go on
            for kind in ("importance", "uncertainty"):
                self.register_buffer(f"{kind}_{name}", torch.zeros_like(self.get_parameter(name)))
        self.register_buffer("kept", torch.ones(rank, 1, dtype=torch.bool))

    def delta(self) -> Tensor:
        return self.scale * self.B @ (self.E * self.A)

    @torch.no_grad()
    def observe(self, beta: float) -> None:
        """Smooth the importance |w dL/dw| of each entry, and how far it strays."""
        for name in FACTORS:
            tensor = self.get_parameter(name)
            if tensor.grad is not None:
                now = (tensor * tensor.grad).abs()
                mean, stray = self.get_buffer(f"importance_{name}"), self.get_buffer(f"uncertainty_{name}")
                mean.lerp_(now, 1 - beta)
                stray.lerp_((now - mean).abs(), 1 - beta)

    def scores(self) -> Tensor:
        """(R,): of E, and the means of its row of A and its column of B."""
        a, e, b = (self.get_buffer(f"importance_{name}") * self.get_buffer(f"uncertainty_{name}") for name in FACTORS)
        return e.flatten() + a.mean(dim=1) + b.mean(dim=0)


@register("adalora", family="reparameter", paper="2303.10512", year=2023, venue="ICLR")
class AdaLoRA(OnProjections):
    """Each update is a sum of triplets, like singular values with their vectors; training prunes the least important.

    W' = W + s B diag(E) A, s = alpha / R, A (R, D_in), B (D_out, R), E (R,). E starts at zero, so step 0 is the frozen
    model. `penalty` keeps A and B near orthogonal: the mean of |A A^T - I|_F and |B^T B - I|_F over all layers. It can
    be folded into W.

    The importance of an entry w is I U, I the average of |w dL/dw| with beta, U that of |w dL/dw - I|; a triplet's is
    that of E, plus the means over its row of A and its column of B. Between the shares `begin` and 1 - `settle` of the
    training, the budget falls from all R to `target` triplets a layer, b = b_T + (b_0 - b_T) (1 - t)^3; before each
    step the E of all but the b most important of the network are set to zero. They may grow again, until `settle`.

    A loop of your own calls `tuned.advance(progress)` and, after the backward pass, `tuned.after_backward()`. Here the
    gradient meets the weight that it belongs to; peft takes it times the weight after the step.
    """

    rank: int = Field(default=12, gt=0)
    """R, triplets of each layer at the start"""
    target: int = Field(default=8, gt=0)
    """triplets of a layer at the end, on average"""
    alpha: float | None = None
    """numerator of the scale alpha / R; None means R, so that s = 1"""
    orthogonality: float = Field(default=0.5, ge=0.0)
    """weight of the penalty; 0.1 to 0.5 in the paper"""
    beta: float = Field(default=0.85, gt=0.0, lt=1.0)
    """of both averages"""
    begin: float = Field(default=0.1, ge=0.0, lt=1.0)
    """share of the training before any pruning; the paper sets steps for each task, about a tenth on MNLI"""
    settle: float = Field(default=0.3, ge=0.0, lt=1.0)
    """share at the end with ranks that no longer change (our choice)"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        for place in self.places(backbone):
            width, width_in = place.weight.flatten(1).shape
            yield place.reparametrize(Triplets(width_in, width, self.rank, scale))

    def penalty(self, tuned: TunedModel) -> Tensor | None:
        if not self.orthogonality:
            return None
        norms = []
        for layer in _layers(tuned):
            eye = torch.eye(len(layer.A), dtype=layer.A.dtype, device=layer.A.device)
            norms += [torch.linalg.matrix_norm(gram - eye) for gram in (layer.A @ layer.A.T, layer.B.T @ layer.B)]
        return self.orthogonality * torch.stack(norms).mean()

    def after_backward(self, tuned: TunedModel) -> None:
        for layer in _layers(tuned):
            layer.observe(self.beta)

    @torch.no_grad()
    def advance(self, tuned: TunedModel, progress: float) -> None:
        layers = _layers(tuned)
        end = 1 - self.settle
        if progress > self.begin and self.target < self.rank:
            more = sum(int(layer.kept.sum()) for layer in layers) > self.target * len(layers)
            if progress <= end or more:
                self._choose(layers, min(1.0, (progress - self.begin) / max(end - self.begin, 1e-9)))
            for layer in layers:
                layer.E.masked_fill_(~layer.kept, 0.0)

    def _choose(self, layers: list[Triplets], share: float) -> None:
        """Mark the triplets that the budget at this share of the pruning lets live.

        Raises:
            VpeftError: no gradient was ever looked at.
        """
        first, last = self.rank * len(layers), self.target * len(layers)
        budget = int((first - last) * (1 - share) ** 3 + last)
        scores = torch.cat([layer.scores() for layer in layers])
        if not scores.any():
            raise VpeftError("AdaLoRA ranks by gradients: call tuned.after_backward() after each backward pass.")
        if budget < first:
            threshold = scores.kthvalue(first - budget).values
            for layer in layers:
                layer.kept.copy_((layer.scores() > threshold)[:, None])


def _layers(tuned: TunedModel) -> list[Triplets]:
    return [edit.layer for edit in tuned.adapter().edits if isinstance(edit.layer, Triplets)]
