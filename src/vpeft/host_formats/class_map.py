"""SegFormer, UPerNet and other semantic segmenters of transformers: `labels` (B, H, W), 255 where nothing counts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.batch import Batch

from .host_format import HostFormat, fields_given, number_of_labels, register_format, taken


@register_format
class ClassMap(HostFormat):
    """One class for each pixel; the host's own loss, with its auxiliary head where it has one."""

    kinds = ("mask",)

    @classmethod
    def fits(cls, host: nn.Module) -> bool:
        gives, takes = fields_given(host), set(taken(host))
        if "input_ids" in takes:  # its logits are of words
            return False
        return (
            {"pixel_values", "labels"} <= takes and "logits" in gives and not gives & {"pred_boxes", "predicted_depth"}
        )

    @property
    def classes(self) -> int | None:
        return number_of_labels(self.host)

    def arguments(self, inputs: Tensor, batch: Batch, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {"pixel_values": inputs, **({"labels": batch.targets.long()} if training else {})}
        return (), named

    def given(self, outputs: Any, inputs: Tensor, batch: Batch, training: bool) -> Any:
        logits = F.interpolate(outputs.logits.float(), size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        return {"logits": logits, "losses": {"loss": outputs.loss.squeeze()}} if training else logits
