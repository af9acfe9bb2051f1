"""What heads for maps give: logits, and in training perhaps further logits beside them; and maps at other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional


def logits_of(outputs: Any) -> Any:
    """The logits among the outputs of a head: those of a mapping, or the outputs themselves."""
    return outputs.get("logits") if isinstance(outputs, Mapping) else outputs


def auxiliary_of(outputs: Any) -> dict[str, Tensor]:
    """Further logits by name, where a head gives a mapping."""
    return {str(k): v for k, v in outputs.items() if k != "logits"} if isinstance(outputs, Mapping) else {}


def own_losses(outputs: Any) -> dict[str, Tensor] | None:
    """The losses that a whole model computed by itself, by name; None where it gives none."""
    losses = outputs.get("losses") if isinstance(outputs, Mapping) else None
    return None if losses is None else dict(losses)


def to_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W), bilinearly, about the centres of the cells."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
