"""torchvision's segmenters (DeepLabV3, FCN, LR-ASPP): images (B, C, H, W) -> {"out": logits, "aux": logits}."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from vpeft.batch import Batch

from .host_format import HostFormat, register_format, taken


@register_format
class TorchvisionMap(HostFormat):
    """One class for each pixel; they have no loss of their own, the task has."""

    kinds = ("mask",)

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        said = inspect.signature(host.forward).return_annotation
        return (
            len(taken(host)) == 1 and said in (dict[str, Tensor], "dict[str, Tensor]") and hasattr(host, "classifier")
        )

    @property
    def classes(self) -> int | None:
        convolutions = [m for m in self.host.get_submodule("classifier").modules() if isinstance(m, nn.Conv2d)]
        return int(convolutions[-1].out_channels)

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (inputs,), {}

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        return outputs["out"]
