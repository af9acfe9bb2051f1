"""DARE: changes are dropped at random and the rest is made larger, before the models are merged."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpeft.regimes.fusion.ground import Ground
from vpeft.regimes.fusion.sources import Source
from vpeft.regimes.fusion.way import Fusion, Way, register_way
from vpeft.regimes.fusion.ways.task_arithmetic import TaskArithmetic
from vpeft.regimes.fusion.ways.ties import TIES
from vpeft.training.randomness import derived_seed


@register_way("dare", paper="2311.03099")
class DARE(Way):
    """tau' = m tau / (1 - p) with m ~ Bernoulli(1 - p) for each entry; then task arithmetic or TIES on tau'."""

    drop: float = Field(default=0.9, ge=0.0, lt=1.0)
    """p, the share that is dropped"""
    then: Literal["task_arithmetic", "ties"] = "task_arithmetic"
    """how what is left is merged"""
    scale: float = 0.3
    """lambda of the merge"""

    def fuse(self, ground: Ground) -> Fusion:
        sources = tuple(self._dropped(source, ground.seed) for source in ground.sources)
        kept = Ground(ground.tuned, sources, ground.data, ground.seed, ground.workers, ground.say)
        merge = TaskArithmetic(scale=self.scale) if self.then == "task_arithmetic" else TIES(scale=self.scale)
        return merge.fuse(kept)

    def _dropped(self, source: Source, seed: int) -> Source:
        changes = {name: self._of(value, source.name, name, seed) for name, value in source.changes.items()}
        return Source(source.name, changes, source.head, source.task)

    def _of(self, value: Tensor, task: str, name: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(seed, "dare", task, name))
        kept = torch.rand(value.shape, generator=generator).to(value.device) >= self.drop
        return value * kept / (1 - self.drop)
