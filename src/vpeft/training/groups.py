"""Parameter groups of the optimiser: learning rate and weight decay of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vpeft.errors import VpeftError
from vpeft.training.optimisation import Optimisation, UnknownOptimiser, optimiser_class


class NothingToTrain(VpeftError):
    """No parameter requires a gradient."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to weights of two or more dimensions, not to biases, norms, scales and gates."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "bias"


def make_optimiser(
    named: Iterable[tuple[str, nn.Parameter]], settings: Optimisation, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser with up to four groups: head or adapter, decayed or not.

    Each group has its `peak_lr` and its `names`. Tensors with another factor of the rate have groups of their own.

    Args:
        named: names and parameters.
        settings: rates, decay and the optimiser's name.
        factors: by which the rates of some parameters are multiplied, by name; 1 for all others.

    Raises:
        NothingToTrain: `named` is empty.
    """
    members: dict[tuple[str, bool, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        part = "head" if name.split(".")[0] == "head" else "adapter"
        factor = (factors or {}).get(name, 1.0)
        members.setdefault((part, is_decayed(name, parameter), factor), []).append((name, parameter))
    if not members:
        raise NothingToTrain(
            "Nothing is trained: no parameter requires a gradient. Attach a method, or give num_classes."
        )
    groups: list[dict[str, Any]] = []
    for (part, decayed, factor), pairs in members.items():
        peak = factor * (settings.head_lr if part == "head" and settings.head_lr is not None else settings.lr)
        groups.append(
            {
                "params": [parameter for _, parameter in pairs],
                "names": [name for name, _ in pairs],
                "part": part,
                "peak_lr": peak,
                "lr": peak,
                "weight_decay": settings.weight_decay if decayed else 0.0,
            }
        )
    name, own = optimiser_class(settings.optimiser)
    kind: Any = getattr(torch.optim, name)
    try:
        made: torch.optim.Optimizer = kind(groups, lr=settings.lr, **own)
    except (TypeError, ValueError) as error:
        raise UnknownOptimiser(f"{name} cannot be made with {own}: {error}.") from None
    return made
