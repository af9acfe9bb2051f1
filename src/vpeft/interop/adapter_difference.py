"""What differs between two adapter files: in the manifests by field, and in the tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..injection.adapter_file import Manifest
from .adapter_summary import cosine

# These differ between any two files, and are no settings.
_SEALS = ("seal", "tensors_digest", "probe", "base_probe", "base_values")


@dataclass(frozen=True)
class FieldDifference:
    """One field of the manifests that differs; None where a file lacks it."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of the files.

    Attributes:
        tensor: its name.
        first, second: shapes; None where a file lacks it.
        relative: |a - b| / |a|, Frobenius norms; None where they cannot be compared, infinity where a is zero.
        cosine: between them; None where they cannot be compared or one is zero.
    """

    tensor: str
    first: tuple[int, ...] | None
    second: tuple[int, ...] | None
    relative: float | None
    cosine: float | None


def manifest_differences(first: Manifest, second: Manifest) -> list[FieldDifference]:
    """The fields that differ, by dotted name."""
    a, b = (_flat(one.model_dump(mode="json", exclude=set(_SEALS))) for one in (first, second))
    return [FieldDifference(key, a.get(key), b.get(key)) for key in dict.fromkeys((*a, *b)) if a.get(key) != b.get(key)]


def tensor_differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[TensorDifference]:
    """The tensors that differ, by name."""
    found = []
    for key in dict.fromkeys((*first, *second)):
        a, b = first.get(key), second.get(key)
        if a is not None and b is not None and a.shape == b.shape and a.equal(b):
            continue
        relative = alike = None
        if a is not None and b is not None and a.shape == b.shape and a.is_floating_point():
            size, change = float(a.double().norm()), float((a.double() - b.double()).norm())
            relative = change / size if size else float("inf")
            alike = cosine({key: a}, {key: b})
        shapes = (None if a is None else tuple(a.shape), None if b is None else tuple(b.shape))
        found.append(TensorDifference(key, *shapes, relative, alike))
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists of them as one mapping with dotted names; lists of numbers and words stay."""
    if isinstance(value, Mapping):
        parts = [_flat(inner, f"{prefix}.{key}" if prefix else str(key)) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        parts = [_flat(inner, f"{prefix}.{number}") for number, inner in enumerate(value)]
    else:
        return {prefix: value}
    return {key: inner for part in parts for key, inner in part.items()}
