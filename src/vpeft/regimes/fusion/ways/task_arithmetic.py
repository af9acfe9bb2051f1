"""Task arithmetic: scaled changes are added to the base."""

from __future__ import annotations

from vpeft.regimes.fusion.ground import Ground, sum_of
from vpeft.regimes.fusion.way import BadWay, Fusion, Way, register_way


@register_way("task_arithmetic", paper="2212.04089")
class TaskArithmetic(Way):
    """theta = theta_0 + lambda sum_n tau_n. A negative lambda forgets.

    The change of a low-rank adapter is its product: adding the factors would give cross terms.
    """

    scale: float = 0.3
    """lambda; 0.3 is the paper's for eight tasks"""
    scales: tuple[float, ...] = ()
    """a lambda for each model, in order, in the place of one for all"""

    def fuse(self, ground: Ground) -> Fusion:
        count = len(ground.sources)
        if self.scales and len(self.scales) != count:
            raise BadWay(f"task_arithmetic.scales has {len(self.scales)} numbers for {count} models. Give one each.")
        return Fusion(sum_of(ground.changes(), self.scales or (self.scale,) * count))
