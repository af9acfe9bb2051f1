"""Where the tokens of each task go in a fusion by routed experts: shares by place and task, and their picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vpeft.injection.tuned_model import TunedModel
from vpeft.regimes.fusion.sources import CannotFuse
from vpeft.training.batches import Batches, Samples
from vpeft.training.modes import evaluation_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Routing:
    """How much of the tokens of each task goes to each expert.

    Attributes:
        places: names of the linear maps, in the order of the forward pass.
        tasks: names of the tasks; expert n is that of task n.
        shares: (places, tasks, experts); rows sum to 1. NaN for an expert that a place does not have.
    """

    places: tuple[str, ...]
    tasks: tuple[str, ...]
    shares: Tensor

    @property
    def own(self) -> Tensor:
        """The share of each task's tokens that goes to its own expert, (places, tasks)."""
        return self.shares.diagonal(dim1=1, dim2=2)

    def picture(self, title: str = "") -> Figure:
        """A heat map: for each place (row) and task (column) the share that its own expert gets."""
        from matplotlib.figure import Figure

        cells = 100 * np.ma.masked_invalid(self.own.numpy())
        figure = Figure(figsize=(3 + 0.5 * len(self.tasks), 1.5 + 0.18 * len(self.places)), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(cells, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(self.tasks)), self.tasks, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(self.places)), self.places, fontsize=6)
        axes.set_xlabel("task of the images")
        axes.set_title(title, fontsize=10)
        figure.colorbar(shown, label="% of the tokens at the task's own expert")
        return figure


@torch.no_grad()
def routing_shares(
    tuned: TunedModel,
    data: Mapping[str, Samples],
    experts: Mapping[str, list[str]] | None = None,
    *,
    images: int = 64,
) -> Routing:
    """Measure where the tokens of each task go.

    Args:
        tuned: with a fusion by routed experts on.
        data: prepared samples of each task.
        experts: the tasks whose experts each place has, as the file of a fusion states them (`extra["fusion"]`); None
            where every place has all.
        images: of each task.

    Raises:
        CannotFuse: no layer of the adapter chooses between experts.
    """
    layers = {
        edit.place.name: edit.layer
        for edit in tuned.adapter().edits
        if edit.layer is not None and callable(getattr(edit.layer, "weights", None))
    }
    if not layers:
        raise CannotFuse("No layer of this adapter chooses between experts; fuse with smile.")
    tasks, names = tuple(data), tuple(layers)
    shares = torch.full((len(names), len(tasks), len(tasks)), torch.nan, dtype=torch.float64)
    sums: dict[str, Tensor] = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(layer: nn.Module, given: tuple[Any, ...]) -> None:
            weights = layer.weights(given[0]).double()  # type: ignore[operator]
            sums[name] = sums.get(name, 0) + weights.flatten(0, -2).sum(0)

        return add

    handles = [layer.register_forward_pre_hook(count(name)) for name, layer in layers.items()]
    device = next(tuned.parameters()).device
    try:
        with evaluation_mode(tuned):
            for column, task in enumerate(tasks):
                sums.clear()
                seen = 0
                for batch in Batches(data[task], 32).epoch():
                    part = batch[0 : images - seen]
                    tuned.features(part.inputs.to(device))
                    seen += len(part)
                    if seen >= images:
                        break
                for row, name in enumerate(names):
                    owners = tasks if experts is None else experts[name]
                    for owner, value in zip(owners, sums[name] / sums[name].sum(), strict=True):
                        if owner in tasks:
                            shares[row, column, tasks.index(owner)] = value
    finally:
        for handle in handles:
            handle.remove()
    return Routing(names, tasks, shares.float())
