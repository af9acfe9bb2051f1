"""SMILE: the changes of all models as low-rank experts, between which each token chooses at each linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from vpeft.backbones.places import Projection
from vpeft.layers.linear_places import linear_places
from vpeft.methods.smile import SMILE
from vpeft.regimes.fusion.ground import Ground, sum_of
from vpeft.regimes.fusion.sources import CannotFuse
from vpeft.regimes.fusion.way import Changes, Fusion, Way, register_way


@register_way("smile", paper="2408.10174")
class Smile(Way):
    """y = W_0 x + b_0 + sum over the chosen n of w_n (U_n S_n V_n^T x + dbias_n), routed by the norms |V_g,n^T x|.

    U S V^T is the truncated singular value decomposition of what model n added to W_0; with all ranks kept it is exact.
    A model that did not change a linear map is no expert there. Departure for changes of low rank, such as LoRA's: all
    experts of a place are chosen by as many directions as the change of lowest rank has, and no rank is stored in vain.
    What is no linear map of a block (norms, embeddings,
    convolutions) keeps its pre-trained values, or those of the average.
    """

    rank: int | None = Field(default=32, gt=0)
    """of the experts; None keeps the whole differences"""
    gate_rank: int = Field(default=16, gt=0)
    """directions by which a token chooses"""
    top_k: int = Field(default=1, gt=0)
    """experts of a token"""
    average_others: bool = False
    """whether tensors that are no linear maps are averaged; they are pre-trained otherwise"""

    def fuse(self, ground: Ground) -> Fusion:
        changes, names = ground.changes(), parameter_names(ground.tuned.backbone)
        places, made, covered = list[str](), list[list[Expert]](), set[str]()
        experts: dict[str, list[str]] = {}
        for place in linear_places(ground.backbone, "SMILE"):
            covered |= parameters_at(place, names)
            deltas = [change_at(place, names, one) for one in changes]
            kept = [number for number, (weight, bias) in enumerate(deltas) if bool(weight.any()) or bool(bias.any())]
            if not kept:
                continue
            places.append(place.name)
            experts[place.name] = [ground.sources[number].name for number in kept]
            made.append(experts_of([deltas[number] for number in kept], self.gate_rank))
        if not places:
            raise CannotFuse(
                "SMILE mixes what changed in the linear maps of blocks, and these models changed none. Take averaging"
                " or task_arithmetic."
            )
        # further ranks than any change has would be zeros
        rank = None if self.rank is None else min(self.rank, max(1, *(one.rank for each in made for one in each)))
        layers = {
            f"{place}.parallel.{key}": torch.stack([one.tensors(rank)[key] for one in each])
            for place, each in zip(places, made, strict=True)
            for key in ("A", "B", "shift", "gates")
            if key != "A" or rank is not None
        }
        counts = tuple(map(len, made))
        added: dict[str, Tensor] = {}
        if self.average_others:
            added = sum_of(changes, [1 / len(changes)] * len(changes))
            added = {name: value for name, value in added.items() if name not in covered}
        method = SMILE(
            experts=max(counts),
            rank=rank,
            gate_rank=self.gate_rank,
            top_k=self.top_k,
            places=tuple(places),
            counts=counts,
        )
        return Fusion(added, (method,), layers, {"experts": experts})


# Singular values below this share of the largest one are rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Expert:
    """What one model added to a linear map.

    Attributes:
        weight, bias: the change itself, (o, i) and (o,).
        left, values, right: its singular value decomposition, (o, m), (m,), (m, i).
        rank: how many of the singular values are more than rounding.
        gates: the directions by which a token chooses, (g, i).
    """

    weight: Tensor
    bias: Tensor
    left: Tensor
    values: Tensor
    right: Tensor
    rank: int
    gates: Tensor

    def tensors(self, rank: int | None) -> dict[str, Tensor]:
        """The tensors of an expert of `RoutedExperts`, of the largest `rank` singular values or the whole change."""
        kept = len(self.values) if rank is None else min(rank, len(self.values))
        found = {
            "gates": self.gates,
            "shift": self.bias,
            "A": self.right[:kept],
            "B": self.weight if rank is None else self.left[:, :kept] * self.values[:kept],
        }
        return {name: value.to(self.weight) for name, value in found.items()}


def experts_of(deltas: Sequence[tuple[Tensor, Tensor]], gate_rank: int) -> list[Expert]:
    """Experts of the changes of one weight and its bias.

    All are chosen by as many directions, as many as the change of lowest rank has: further singular vectors of it say
    nothing. A change of the bias alone has no direction.
    """
    parts = [torch.linalg.svd(weight.cpu().double(), full_matrices=False) for weight, _ in deltas]
    ranks = [int((values > _ROUNDING * values[0]).sum()) if values[0] > 0 else 0 for _, values, _ in parts]
    directions = min([gate_rank, *(rank for rank in ranks if rank)])
    made = []
    for (weight, bias), (left, values, right), rank in zip(deltas, parts, ranks, strict=True):
        gates = torch.zeros_like(right[: min(gate_rank, len(right))])
        if rank:
            gates[:directions] = right[:directions]
        made.append(Expert(weight, bias, left, values, right, rank, gates))
    return made


def parameter_names(model: nn.Module) -> dict[tuple[int, str], str]:
    """The name of each parameter by its module and attribute."""
    return {
        (id(module), attribute): f"{prefix}.{attribute}" if prefix else attribute
        for prefix, module in model.named_modules()
        for attribute, value in module._parameters.items()
        if value is not None
    }


def parameters_at(place: Projection, names: dict[tuple[int, str], str]) -> set[str]:
    """The names of the parameters of a linear map."""
    owners = [(place.module, "weight"), (place.module, "bias"), *place.biases]
    return {names[id(module), attribute] for module, attribute in owners if (id(module), attribute) in names}


def change_at(place: Projection, names: dict[tuple[int, str], str], changes: Changes) -> tuple[Tensor, Tensor]:
    """What a model added to the weight (o, i) and the bias (o,) of a linear map, zeros where nothing."""

    def of(module: nn.Module, attribute: str) -> Tensor:
        live: Tensor | None = getattr(module, attribute)
        found = changes.get(names.get((id(module), attribute), ""))
        if found is not None:
            return found
        return torch.zeros_like(live) if live is not None else weight.new_zeros(len(weight))

    weight = of(place.module, "weight")
    parts = [of(module, attribute) for module, attribute in place.biases] or [of(place.module, "bias")]
    bias = torch.cat(parts)
    if place.rows is None:
        return weight, bias
    return place.rows.take(weight, 0), place.rows.take(bias, 0)
