"""VMT-Adapter-Lite: VMT-Adapter with one matrix for both ways of the adapter."""

from __future__ import annotations

from torch import nn

from ..layers.task_affine import TiedBottleneck
from ..method import register
from .vmt_adapter import SharedAdapters


@register("vmt_adapter_lite", category="multi-task", family="adapter", paper="2312.08733", year=2024, venue="AAAI")
class VMTAdapterLite(SharedAdapters):
    """VMT-Adapter with a = c (W^T ReLU(W x + b_down) + b_up): one W (R, D) goes down and up.

    c is a trained number that starts at zero, so step 0 is the frozen model. A reconstruction, as VMT-Adapter is: the
    paper says that parameters of the two projections are shared, and this is the plainest way.
    """

    def adapter(self, width: int) -> nn.Module:
        return TiedBottleneck(width, self.bottleneck)
