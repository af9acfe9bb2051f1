"""DPT and other depth estimators of transformers: `predicted_depth` (B, H, W); they have no loss, the task has.

The task reads the logarithm of the depth. What a host predicts is cut off at `LEAST`, below which it has no logarithm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.batch import Batch

from .host_format import HostFormat, fields_given, register_format, taken

LEAST = 1e-3


@register_format
class DepthMap(HostFormat):
    """One number for each pixel."""

    kinds = ("depth",)

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        return "pixel_values" in taken(host) and "predicted_depth" in fields_given(host)

    @property
    def classes(self) -> int | None:
        return None

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"pixel_values": inputs}

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        depth = outputs.predicted_depth[:, None].float().clamp(min=LEAST).log()
        return F.interpolate(depth, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
