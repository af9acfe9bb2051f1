"""The grid of rows and columns for the images at hand, for layers that ask for it.

A layer with `wants_grid = True` is called with `grid=(H, W)` of the place where it acts, (T, H, W) for clips. One with
`wants_grids = True` is called with `grids=(...)`: that of each thing it reads, in order, None where there is none.
One with `wants_frames = True` is called with `frames=T`, where the frames of clips pass one by one as a batch (B * T);
with `frames=1` everywhere else. One with `wants_tasks = True` is called with `tasks=("depth", ...)`: the names of the
tasks that the pass is for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from ..backbones.places import Place
from ..backbones.points import MissingPlace
from .switch import Switch

Grid = tuple[int, ...]


def images_size(inputs: Any, time_axis: int | None = None) -> Grid | None:
    """Height and width of images (B, C, H, W), or frames, height and width of clips; None for anything else."""
    if not isinstance(inputs, Tensor) or inputs.dim() not in (4, 5):
        return None
    height, width = inputs.shape[-2:]
    if inputs.dim() == 4:
        return int(height), int(width)
    return int(inputs.shape[time_axis or 2]), int(height), int(width)


def grid_of(place: Place | None, tensor: Any, first: bool, size: Grid | None) -> Grid | None:
    """The grid on which a tensor of a place lies; None where it lies on none, or is no tensor but several.

    Args:
        place: where the tensor was seen; None where that is not known.
        tensor: (B, N, D), or a map with its channels last, or `first` for (B, D, H, W).
        first: whether the channels of a map come first.
        size: of the images of this pass.
    """
    if not isinstance(tensor, Tensor):
        return None
    if tensor.dim() > 3:
        return tuple(int(length) for length in (tensor.shape[2:] if first else tensor.shape[1:-1]))
    if place is None or tensor.dim() < 3 or place.grid is None:
        return None
    if size is None:
        size = place.grid if place.scale is None else place.scale.size
    count = int(tensor.shape[1]) - place.prefix
    try:
        return place.grid_at(size, count)
    except MissingPlace:
        found = place.grid_at(size)  # the others are inserted tokens, which stand before the grid
        if found is None or prod(found) > count:
            raise
        return found


class RunTimeGrid:
    """What a layer is told of the grids of one pass.

    Args:
        switch: knows the pass.
        place: where the layer acts.
        sources: where each thing that it reads comes from; None for what an edit made.
        asked: the keywords that it asks for: "grid", "grids" of everything it reads, "frames", "tasks".
    """

    def __init__(self, switch: Switch, place: Place, sources: Sequence[Place | None], asked: Collection[str]) -> None:
        self.switch, self.place, self.sources, self.asked = switch, place, tuple(sources), tuple(asked)

    def __call__(self, hidden: Tensor, values: Sequence[Tensor], first: bool) -> dict[str, Any]:
        """The keywords for a layer that is given `hidden` and the `values` that it reads."""
        size = self.switch.present.size
        told: dict[str, Any] = {"tasks": self.switch.tasks_on()} if "tasks" in self.asked else {}
        if "frames" in self.asked:
            told["frames"] = frames_of(self.place, self.switch)
        if "grids" in self.asked:
            pairs = zip(self.sources, values, strict=True)
            told["grids"] = tuple(grid_of(place, value, first, size) for place, value in pairs)
        if "grid" in self.asked:
            told["grid"] = self._grid(hidden, first, size)
        return told

    def _grid(self, hidden: Tensor, first: bool, size: Grid | None) -> Grid:
        grid = grid_of(self.place, hidden, first, size)
        if grid is None:
            raise MissingPlace(
                f"The tokens of {self.place.name} lie on no grid of rows and columns, and this method needs one."
            )
        return grid


def frames_of(place: Place, switch: Switch) -> int:
    """The frames T of a clip that pass a place one by one in this pass, (B * T, ...); 1 where they do not.

    Raises:
        MissingPlace: the batch holds windows of frames there.
    """
    if not place.per_frame:
        return 1
    if place.local:
        raise MissingPlace(
            f"{place.name} sees the windows of all frames as one batch, and this method needs the frames of clips."
        )
    counted = switch.present.counted(switch.frames)
    return counted or place.frames or 1


def run_time_grid(
    layer: nn.Module | None, switch: Switch, place: Place, sources: Sequence[Place | None] = ()
) -> RunTimeGrid | None:
    """What tells a layer the grids of a pass; None for a layer that does not ask."""
    asked = [word for word in ("grid", "grids", "frames", "tasks") if getattr(layer, f"wants_{word}", False)]
    return RunTimeGrid(switch, place, sources, asked) if asked else None
