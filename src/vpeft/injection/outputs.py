"""What a model gives, whatever its head: tensors, mappings and lists of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """Every floating-point tensor among the outputs, in order."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from tensors_in(value)


def one_tensor(outputs: Any) -> Tensor:
    """The outputs as one tensor, for comparisons: a tensor as it is, several flattened and put one behind the other."""
    if isinstance(outputs, Tensor):
        return outputs
    found = [tensor.flatten() for tensor in tensors_in(outputs)]
    return torch.cat(found) if found else torch.zeros(0)
