"""Mode approximation (Aurora, PETAL): all weight changes as slices of one tensor in CP or Tucker form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import nn

from ..backbones.backbone import Backbone
from ..backbones.edits import Edit
from ..layers.factored import Factors
from ..method import BadField, Method, register
from .fact_tk import bank
from .fact_tt import TARGETS, Target

if TYPE_CHECKING:
    from ..injection.tuned_model import TunedModel


@register("petal", category="partial", family="reparameter", paper="2305.08381", year=2023, venue="NeurIPS")
class PETAL(Method):
    """The changes of all M matrices D x D are slices of one tensor: shared U and V, one vector p_m for each.

    cp (the paper): dW_m = s V diag(lambda * p_m) U, with U (R, D), V (D, R), lambda and p_m (R,).
    tucker (the released code): y = W x + b + s V drop((U x) S_m), S_m = sum_c C[:, :, c] p_m[c], C (R, R, R): FacT-TK.

    V starts at zero, so step 0 is the frozen model; it folds into the weights. This is the image tower of Aurora
    (2305.08381) and the bank of PETAL (2312.12458). Their gated query transformation, context term and experts act
    in text encoders only. Two towers of one host share U, V and lambda (or C) where the method is put on "*", those of
    two models through `share`; each keeps its own p_m.

    lambda starts at one, where the paper says nothing. The parts of fc1 and fc2 interleave with `tucker`, as in the
    code, and not with `cp`.
    """

    variants = ({"targets": ("fc1", "fc2")},)

    core: Literal["cp", "tucker"] = "cp"
    """the form of the tensor"""
    rank: int = Field(default=64, gt=0)
    """R; the paper has 64 and 128"""
    scale: float = 1.0
    """s"""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """before V"""
    targets: tuple[Target, ...] = TARGETS
    """projections of each block"""

    def edits(self, backbone: Backbone) -> Iterator[Edit]:
        yield from bank(backbone, self.targets, self.rank, self.scale, self.dropout, kind=self.core)

    def edits_across(self, towers: Mapping[str, Backbone]) -> Iterator[Edit]:
        """One U, V and lambda (or C) for all towers of one width; each tower keeps its own p_m.

        Raises:
            BadField: a tower has no width in common with the first.
        """
        first, *others = ([*self.edits(tower)] for tower in towers.values())
        banks = _banks(edit.layer for edit in first)
        for edits in others:
            _tie(banks, _banks(edit.layer for edit in edits))
        for edits in (first, *others):
            yield from edits

    @staticmethod
    def share(first: TunedModel, *others: TunedModel) -> None:
        """Let the banks of further towers use the outer factors and the core of the first, width by width.

        Give an optimiser each parameter once: `{id(p): p for tower in towers for _, p in tower.trainable()}.values()`.
        Each tower saves whole, so after `load` call this again. Moving a tower to another device keeps the tie.

        Raises:
            BadField: a tower has no such bank, no width or form in common with the first, or was trained apart.
        """
        banks = _banks([first.adapter()])
        for other in others:
            _tie(banks, _banks([other.adapter()]))


SHARED = ("U", "V", "C", "weight")
Key = tuple[int, int, tuple[str, ...]]  # width, rank, names of what is shared


def _tie(banks: dict[Key, Factors], mine: dict[Key, Factors]) -> None:
    """Put what is shared of the first tower's banks into those of another."""
    if not banks.keys() & mine.keys():
        raise BadField(
            f"There is nothing to share: the first tower has banks of {_named(banks)}, the other of"
            f" {_named(mine)} (width, rank, form)."
        )
    for key in banks.keys() & mine.keys():
        pairs = [(name, getattr(banks[key], name), getattr(mine[key], name)) for name in key[2]]
        differ = [name for name, one, two in pairs if one is not two and not torch.equal(one.cpu(), two.cpu())]
        if differ and mine[key].V.any():
            raise BadField(f"The towers were trained apart: {', '.join(differ)} differ. Share before training.")
        for name, one, _ in pairs:
            setattr(mine[key], name, one)


def _banks(layers: Iterable[nn.Module | None]) -> dict[Key, Factors]:
    inside = (module for layer in layers if layer is not None for module in layer.modules())
    found = [module for module in inside if isinstance(module, Factors) and hasattr(module, "P")]
    return {(one.width, one.rank, tuple(name for name in SHARED if hasattr(one, name))): one for one in found}


def _named(banks: dict[Key, Factors]) -> str:
    forms = [(width, rank, "tucker" if "C" in names else "cp") for width, rank, names in banks]
    return ", ".join(map(str, forms)) or "nothing"
