"""TIES: changes are trimmed, agree on a sign, and only those of that sign are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpeft.regimes.fusion.ground import Ground
from vpeft.regimes.fusion.way import Changes, Fusion, Way, register_way


@register_way("ties", paper="2306.01708")
class TIES(Way):
    """theta = theta_0 + lambda tau, with tau from trimming, election of signs and a disjoint merge.

    On the changes of each model as one vector: keep the `density` largest in size, zero the rest; the sign of an entry
    is that of the sum over the models, zeros take the sign of the majority of all entries; merge the non-zero entries
    of that sign by their mean, or sum.

    The vector holds the parameters that any of the models changed. The code of the paper keeps int(density d) + 1
    entries, and so does this.
    """

    density: float = Field(default=0.2, gt=0.0, le=1.0)
    """share of the entries that stay"""
    scale: float = 1.0
    """lambda; the paper has 1 with the mean, later work 0.3 with the sum"""
    merge: Literal["mean", "sum"] = "mean"
    """what becomes of the entries of the elected sign"""

    def fuse(self, ground: Ground) -> Fusion:
        trimmed = trimmed_and_elected(ground.changes(), self.density)
        merged = sum(trimmed[1:], trimmed[0])
        if self.merge == "mean":
            merged = merged / sum((one != 0).float() for one in trimmed).clamp(min=1)  # type: ignore[union-attr]
        return Fusion(unflattened(self.scale * merged, ground.base))


def trimmed_and_elected(changes: Sequence[Changes], density: float) -> list[Tensor]:
    """The changes as vectors (d,), with what is trimmed or of the other sign at zero."""
    trimmed = [_trimmed(flattened(one), density) for one in changes]
    sign = torch.stack(trimmed).sum(0).sign()
    majority = sign.sum().sign()
    sign = torch.where(sign == 0, majority, sign)
    return [torch.where(one.sign() == sign, one, torch.zeros_like(one)) for one in trimmed]


def _trimmed(vector: Tensor, density: float) -> Tensor:
    size = vector.abs()
    least = max(1, vector.numel() - int(density * vector.numel()))
    return torch.where(size >= size.kthvalue(least).values, vector, torch.zeros_like(vector))


def flattened(changes: Changes) -> Tensor:
    """The tensors one behind the other, by name, (d,)."""
    return torch.cat([changes[name].flatten() for name in sorted(changes)])


def unflattened(vector: Tensor, like: Changes) -> dict[str, Tensor]:
    """The tensors that `flattened` put together, in the shapes of others with the same names."""
    names = sorted(like)
    parts = torch.split(vector, [like[name].numel() for name in names])
    return {name: part.reshape(like[name].shape).clone() for name, part in zip(names, parts, strict=True)}
