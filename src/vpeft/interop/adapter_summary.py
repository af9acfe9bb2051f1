"""What adapters changed, in numbers: sizes and effective ranks by place, and how alike several adapters are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..explanation.representation import effective_rank as effective_rank
from ..injection.tuned_model import TunedModel
from .weight_changes import Changes, weight_changes


@dataclass(frozen=True)
class PlaceSummary:
    """What happened at one place, or to one tensor of the backbone.

    Attributes:
        place: its name.
        parameters: how many numbers: of the adapter's tensors there, or of the changed tensor.
        norm: Frobenius norm of the adapter's tensors, or of the change dW.
        relative: |dW| / |W|; None where only the adapter's own tensors are looked at.
        effective_rank: of the change as a matrix (out, rest): exp of the entropy of its normalised singular values
            (Roy and Vetterli 2007); None for vectors and for the adapter's own tensors.
        share: of the sum of squares of all places.
    """

    place: str
    parameters: int
    norm: float
    relative: float | None
    effective_rank: float | None
    share: float


def summary_of_tensors(tensors: Mapping[str, Tensor]) -> list[PlaceSummary]:
    """Norms and shares of an adapter's own tensors by place, in the order of the file; no backbone is needed."""
    squares: dict[str, float] = {}
    counts: dict[str, int] = {}
    for key, value in tensors.items():
        place = key.rpartition(".")[0] or key
        if value.is_floating_point():
            squares[place] = squares.get(place, 0.0) + float(value.double().square().sum())
            counts[place] = counts.get(place, 0) + value.numel()
    total = sum(squares.values()) or 1.0
    return [
        PlaceSummary(place, counts[place], square**0.5, None, None, square / total) for place, square in squares.items()
    ]


def summary_of_changes(changes: Changes) -> list[PlaceSummary]:
    """Sizes and effective ranks of the changes of the backbone's tensors, as `weight_changes` returns them."""
    found: list[tuple[str, Tensor, float | None]] = []
    for key, (before, after) in changes.items():
        if after.is_floating_point():
            size = None if before is None else float(before.double().norm())
            found.append((key, after.double() if before is None else (after - before).double(), size))
    total = sum(float(delta.square().sum()) for _, delta, _ in found) or 1.0
    return [
        PlaceSummary(
            key,
            delta.numel(),
            float(delta.norm()),
            None if not size else float(delta.norm()) / size,
            effective_rank(delta) if delta.dim() > 1 else None,
            float(delta.square().sum()) / total,
        )
        for key, delta, size in found
    ]


def delta_of(tuned: TunedModel, name: str | None = None) -> dict[str, Tensor]:
    """The change dW of each tensor of the backbone, in single precision.

    Raises:
        CannotMerge: an edit cannot be expressed as a change of weights.
    """
    return {
        key: (after if before is None else after - before).float()
        for key, (before, after) in weight_changes(tuned, name).items()
        if after.is_floating_point()
    }


def cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    """The cosine between two adapters, each as one long vector of tensors by name; a missing tensor counts as zeros.

    None where a tensor of the same name has another shape, or one of the two is zero everywhere.
    """
    dot, squares = 0.0, [0.0, 0.0]
    for number, one in enumerate((first, second)):
        for value in one.values():
            if value.is_floating_point():
                squares[number] += float(value.double().square().sum())
    for key in first.keys() & second.keys():
        a, b = first[key], second[key]
        if a.shape != b.shape:
            return None
        if a.is_floating_point():
            dot += float((a.double() * b.double()).sum())
    scale = (squares[0] * squares[1]) ** 0.5
    return dot / scale if scale > 0 else None


def cosines(adapters: Sequence[Mapping[str, Tensor]]) -> list[list[float | None]]:
    """The cosine between every two adapters, one row for each."""
    return [[1.0 if a is b else cosine(a, b) for b in adapters] for a in adapters]


def nearest_of(row: Sequence[float | None], own: int) -> int | None:
    """The number of the adapter with the largest cosine to that of this row; None where none can be compared."""
    others = [(value, number) for number, value in enumerate(row) if number != own and value is not None]
    return max(others)[1] if others else None
