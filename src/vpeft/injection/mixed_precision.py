"""A backbone in 16 bits under adapters in 32: inputs follow the backbone, and products are taken in its precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def mixed_precision(backbone: nn.Module, adapters: nn.Module) -> AbstractContextManager[Any]:
    """Autocast to the precision of a backbone in 16 bits, where an adapter on it has tensors in 32."""
    first = next((p for p in backbone.parameters() if p.is_floating_point()), None)
    if first is None or first.dtype not in HALF or torch.is_autocast_enabled(first.device.type):
        return nullcontext()
    if not any(parameter.dtype == torch.float32 for parameter in adapters.parameters()):
        return nullcontext()
    return torch.autocast(first.device.type, dtype=first.dtype)


def in_precision(model: nn.Module, inputs: Any) -> Any:
    """Floating-point inputs in the type of a backbone that is not in single precision; others as they are."""
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return inputs if kind == torch.float32 else _converted(inputs, kind)


def _converted(value: Any, kind: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(kind) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _converted(one, kind) for name, one in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_converted(one, kind) for one in value)
    return value
