"""RegMean: linear maps whose outputs are, on the inputs of each task, as near as possible to those of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from vpeft.regimes.fusion.ground import Ground, sum_of
from vpeft.regimes.fusion.sources import Source
from vpeft.regimes.fusion.way import Changes, Fusion, Way, register_way


@register_way("regmean", paper="2212.09849")
class RegMean(Way):
    """W^T = (sum_n G_n)^-1 sum_n G_n W_n^T for each linear layer, G_n = X_n^T X_n of what enters it in model n.

    Entries of G off its diagonal are made smaller by `ratio`. Biases and all other tensors are averaged, and so are
    linear layers that the model does not call as modules.
    """

    needs = "images"

    images: int = Field(default=256, gt=0)
    """of each task"""
    batch: int = Field(default=32, gt=0)
    """images in a pass"""
    ratio: float = Field(default=0.9, ge=0.0, le=1.0)
    """factor of the entries off the diagonal; 0.9 is the paper's"""

    def fuse(self, ground: Ground) -> Fusion:
        changes, modules = ground.changes(), linear_layers(ground)
        base = ground.base
        models = [{name: value + one[name] for name, value in base.items()} for one in changes]
        grams = [
            gram_matrices(ground, source, values, modules, self.images, self.batch)
            for source, values in zip(ground.sources, models, strict=True)
        ]
        added = sum_of(changes, [1 / len(changes)] * len(changes))
        return Fusion(added | solved(changes, grams, self.ratio))


def linear_layers(ground: Ground) -> dict[str, nn.Module]:
    """The linear layers of the base whose weight some model changed, by the name of the weight."""
    changed = set(ground.names)
    return {
        f"{name}.weight": module
        for name, module in ground.tuned.backbone.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in changed
    }


@torch.no_grad()
def gram_matrices(
    ground: Ground,
    source: Source,
    values: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    images: int,
    batch: int,
) -> dict[str, Tensor]:
    """X^T X / n (i, i) of what enters each linear layer on images of one task; layers that are not called are left out.

    Args:
        ground: what is fused.
        source: whose images and head.
        values: parameters of the model that runs.
        modules: the layers by the name of their weight.
        images, batch: how many in all, and in a pass.
    """
    sums: dict[str, Tensor] = {}
    rows = dict.fromkeys(modules, 0)
    for part in ground.batches(source, batch, images=images):
        with ground.inputs_of(modules) as kept:
            ground.outputs(values, part)
        for name, given in kept.items():
            for x in given:
                x = x.cpu().double()  # not every device has double precision
                sums[name] = sums.get(name, 0) + x.T @ x
                rows[name] += len(x)
    return {name: value / rows[name] for name, value in sums.items()}


def solved(changes: Sequence[Changes], grams: Sequence[Mapping[str, Tensor]], ratio: float) -> dict[str, Tensor]:
    """(sum_n G_n)^-1 sum_n G_n dW_n^T, transposed, for the weights that have a G; in single precision.

    As W_0 is the same for all, the solution for the changes is the change of the solution.
    """
    found = {}
    for name in grams[0]:
        shrunk = [shrunken(one[name], ratio) for one in grams]
        right = sum(gram @ one[name].cpu().double().T for gram, one in zip(shrunk, changes, strict=True))
        # directions that never enter a layer have no solution of their own: the smallest one is taken
        answer = torch.linalg.lstsq(torch.stack(shrunk).sum(0), right, driver="gelsd").solution
        found[name] = answer.T.to(changes[0][name]).contiguous()
    return found


def shrunken(gram: Tensor, ratio: float) -> Tensor:
    """G with the entries off its diagonal times `ratio`."""
    return ratio * gram + (1 - ratio) * torch.diag(gram.diagonal())
