"""Averaging: the mean of the fine-tuned weights."""

from __future__ import annotations

from vpeft.regimes.fusion.ground import Ground, sum_of
from vpeft.regimes.fusion.way import Fusion, Way, register_way


@register_way("averaging", paper="2203.05482")
class Averaging(Way):
    """theta = theta_0 + 1/N sum_n tau_n, where tau_n is what model n added to the base theta_0."""

    def fuse(self, ground: Ground) -> Fusion:
        count = len(ground.sources)
        return Fusion(sum_of(ground.changes(), [1 / count] * count))
