"""Which frozen tensors a task is most sensitive to, and how a budget of trained numbers is shared among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Backbone
from ..backbones.blocks import Block
from ..backbones.places import Place, Projection
from ..backbones.points import MissingPlace
from ..errors import VpeftError

MATRICES = ("q", "k", "v", "proj", "fc1", "fc2")
STEPS = 79  # the authors try .02 M to 1.58 M for a budget of 1 M: fiftieths of it
Share = int | Literal["whole"]


@dataclass(frozen=True)
class Candidate:
    """One frozen tensor that may train.

    Attributes:
        name: that of its place and its own.
        place: where it is.
        kind: matrix, bias (of a matrix) or norm (a scale or a shift).
        homes: (module, attribute) of the stored tensors that it is made of, one below the other.
        shape: its own shape, a matrix as (out, in).
    """

    name: str
    place: Place
    kind: Literal["matrix", "bias", "norm"]
    homes: tuple[tuple[nn.Module, str], ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def stored(self) -> list[Tensor]:
        """The stored tensors, also where an edited module answers their name with a changed one."""
        return [{**module._buffers, **module._parameters}[name] for module, name in self.homes]  # type: ignore[misc]

    def own(self, values: Sequence[Tensor]) -> Tensor:
        """Its part, flat, of values that have the shapes of `stored`."""
        whole = torch.cat(list(values))
        rows = self.place.rows if isinstance(self.place, Projection) else None
        return (whole if rows is None else rows.take(whole, 0)).flatten()


def candidates(backbone: Backbone) -> list[Candidate]:
    """Linear maps of the blocks (q, k and v apart) with their biases, the blocks' norms and the final norm.

    Raises:
        MissingPlace: no block has such a linear map.
    """
    found = [one for block in backbone.blocks for place in _linears(block) for one in _of_linear(place)]
    if not found:
        raise MissingPlace(
            f"Sensitivity is measured on the linear maps of the blocks ({', '.join(MATRICES)}), and"
            f" {backbone.facts.architecture} has none."
        )
    norms = [norm for block in backbone.blocks for norm in block.norms]
    for norm in [*norms, *([backbone.norm] if backbone.has_norm else [])]:
        for key in ("weight", "bias"):
            if key in norm.own:
                shape = tuple(getattr(*norm.own[key]).shape)
                found.append(Candidate(f"{norm.name}.{key}", norm, "norm", (norm.own[key],), shape))
    return found


def _linears(block: Block) -> list[Projection]:
    found = []
    for name in MATRICES:
        try:
            place = block.projection(name)
        except MissingPlace:
            continue
        if place.weight[0, 0].numel() == 1 and place.weight.shape[1] == place.width_in:
            found.append(place)
    return found


def _of_linear(place: Projection) -> list[Candidate]:
    shape = tuple(place.weight.flatten(1).shape)
    found = [Candidate(f"{place.name}.weight", place, "matrix", ((place.module, "weight"),), shape)]
    if place.bias is not None:
        homes = place.biases or ((place.module, "bias"),)
        found.append(Candidate(f"{place.name}.bias", place, "bias", homes, tuple(place.bias.shape)))
    return found


def sensitivity(loss: Callable[[Any], Tensor], found: Sequence[Candidate], batches: Iterable[Any]) -> list[Tensor]:
    """The sum over batches of the squared gradient of `loss`(batch), flat, for each candidate.

    `requires_grad` of the stored tensors is afterwards as it was.

    Raises:
        VpeftError: there are no batches.
    """
    whole = {id(tensor): tensor for one in found for tensor in one.stored}
    flags = {key: tensor.requires_grad for key, tensor in whole.items()}
    total = {key: torch.zeros_like(tensor) for key, tensor in whole.items()}
    device, seen = next(iter(whole.values())).device, False
    try:
        for tensor in whole.values():
            tensor.requires_grad_(True)
        for batch in batches:
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                slopes = torch.autograd.grad(loss(batch), list(whole.values()), allow_unused=True)
            for key, slope in zip(whole, slopes, strict=True):
                total[key] += 0 if slope is None else slope.square()
            seen = True
    finally:
        for key, tensor in whole.items():
            tensor.requires_grad_(flags[key])
    if not seen:
        raise VpeftError("Sensitivity is measured on real batches, but `prepare` was given none.")
    return [one.own([total[id(tensor)] for tensor in one.stored]) for one in found]


def allocate(
    found: Sequence[Candidate],
    values: Sequence[Tensor],
    cost: Callable[[Candidate], int],
    budget: int,
    *,
    spent: int = 0,
    alpha: float = 10.0,
    beta: float = 5.0,
) -> dict[str, list[int] | None]:
    """What trains of each candidate, by name: flat places, or None for the whole vector or a module at the matrix.

    The tau most sensitive numbers of all candidates together are marked. A matrix with at least `cost` / alpha marks
    gets a module, a vector with at least a share of 1 / beta trains whole; of other matrices and biases the marked
    numbers train, of other norms none. Of 79 values of tau the one whose count is nearest to the budget is taken.

    Args:
        found, values: candidates and the sensitivities of their numbers.
        cost: of a module at a matrix.
        budget: number of trained numbers.
        spent: numbers that train anyway.
        alpha, beta: see above.
    """
    flat = torch.cat([value.flatten() for value in values]).cpu()
    ends = torch.tensor([value.numel() for value in values]).cumsum(0)
    most = min(len(flat), math.ceil(budget * STEPS / 50))
    order = flat.topk(most).indices
    owner = torch.bucketize(order, ends, right=True)
    best: tuple[int, int] | None = None
    for step in range(1, STEPS + 1):
        tau = min(most, math.ceil(budget * step / 50))
        marks = torch.bincount(owner[:tau], minlength=len(found)).tolist()
        count = spent + sum(_share(one, n, cost, alpha, beta)[1] for one, n in zip(found, marks, strict=True))
        if best is None or abs(count - budget) <= best[0]:
            best = abs(count - budget), tau
    assert best is not None
    order, owner = order[: best[1]], owner[: best[1]]
    chosen: dict[str, list[int] | None] = {}
    for number, one in enumerate(found):
        places = (order[owner == number] - (int(ends[number]) - one.size)).sort().values.tolist()
        kind, count = _share(one, len(places), cost, alpha, beta)
        if count:
            chosen[one.name] = None if kind == "whole" else places
    return chosen


def _share(
    one: Candidate, marks: int, cost: Callable[[Candidate], int], alpha: float, beta: float
) -> tuple[Share, int]:
    """How a candidate with so many marks trains, and how many numbers then do."""
    if one.kind == "matrix":
        module = cost(one)
        return ("whole", module) if marks >= module / alpha else (marks, marks)
    if marks >= one.size / beta:
        return "whole", one.size
    return marks, 0 if one.kind == "norm" else marks


def spread(found: Sequence[Candidate], budget: int) -> Mapping[str, int]:
    """The same budget without data: of each matrix as many numbers as its size asks for, at least one."""
    matrices = [one for one in found if one.kind == "matrix"]
    total = sum(one.size for one in matrices)
    return {one.name: max(1, min(one.size, budget * one.size // total)) for one in matrices}
