"""AdaMerging: the factors of task arithmetic are learnt by the entropy of the predictions, without labels."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpeft.regimes.fusion.ground import Ground, entropy
from vpeft.regimes.fusion.way import Fusion, Way, register_way
from vpeft.regimes.fusion.ways.ties import trimmed_and_elected, unflattened


@register_way("adamerging", paper="2310.02575")
class AdaMerging(Way):
    """theta^l = theta_0^l + sum_n lambda_n^l tau_n^l, with lambda of least entropy on images of all tasks (Adam).

    `layer`: one lambda for each model and parameter tensor; `task`: one for each model. `plus_plus` takes the tau that
    TIES trims, with the elected sign. The loss is the sum over the tasks of the mean entropy of the probabilities of
    classes; labels are not looked at. The paper learns on the test images themselves; give others for a fair score.
    """

    needs = "classes"

    per: Literal["layer", "task"] = "layer"
    """what has a lambda of its own for each model"""
    plus_plus: bool = False
    """whether the changes are trimmed and agree on signs first"""
    start: float = 0.3
    """every lambda before it is learnt"""
    steps: int = Field(default=1000, ge=0)
    """steps, each on one batch of every task"""
    batch: int = Field(default=16, gt=0)
    """images of each task in a step"""
    lr: float = Field(default=1e-3, gt=0)
    """learning rate of Adam"""

    def fuse(self, ground: Ground) -> Fusion:
        base, changes = ground.base, ground.changes()
        if self.plus_plus:
            changes = [unflattened(one, base) for one in trimmed_and_elected(changes, 0.2)]
        stacked = {name: torch.stack([one[name] for one in changes]) for name in base}
        columns = len(base) if self.per == "layer" else 1
        factors = torch.full((len(changes), columns), self.start, device=ground.device, requires_grad=True)
        optimiser = torch.optim.Adam([factors], lr=self.lr)
        losses = list[float]()
        for number, batches in enumerate(ground.steps(self.batch, self.steps), 1):
            added = scaled(stacked, factors)
            values = {name: value + added[name] for name, value in base.items()}
            loss = torch.stack([entropy(ground.outputs(values, batch)) for batch in batches]).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(float(loss.detach()))
            ground.report(number, self.steps, f"entropy {losses[-1]:.3f}")
        found = factors.detach()
        names = list(base) if self.per == "layer" else ["all"]
        facts = {
            "scales": {
                source.name: {name: round(float(value), 6) for name, value in zip(names, row, strict=True)}
                for source, row in zip(ground.sources, found, strict=True)
            },
            "entropy": [losses[0], losses[-1]] if losses else [],
        }
        return Fusion({name: value.clone() for name, value in scaled(stacked, found).items()}, facts=facts)


def scaled(stacked: dict[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """sum_n lambda_n^l tau_n^l of changes (N, ...), with lambda (N, L) or (N, 1)."""
    columns = factors.unbind(1) if factors.shape[1] > 1 else factors.unbind(1) * len(stacked)
    return {
        name: torch.tensordot(column, value, dims=1)
        for column, (name, value) in zip(columns, stacked.items(), strict=True)
    }
