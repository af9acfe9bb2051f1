"""What a head reads: tensors of one forward pass, by the places that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .points import MissingPlace


@dataclass(frozen=True)
class Feature:
    """One tensor, channels last, and how it lies.

    Attributes:
        value: (B, D), (B, N, D), (B, H, W, D), or (B, T, H, W, D).
        prefix: tokens before the grid.
        grid: rows and columns (or frames, rows and columns) of this pass; None for a vector, or tokens on no grid.
        stride: pixels per grid cell; 1 where it is not known.
    """

    value: Tensor
    prefix: int = 0
    grid: tuple[int, ...] | None = None
    stride: int = 1


class Features(Mapping[str, Tensor]):
    """The tensors that a head reads in one pass, channels last: `features["outlet"]` is (B, D).

    Attributes:
        size: height and width of the images (frames, height and width of clips) of this pass; None if not known.
        tasks: the tasks that the pass is for, where it was told.
    """

    def __init__(
        self,
        found: Mapping[str, Feature],
        size: tuple[int, ...] | None = None,
        tasks: tuple[str, ...] | None = None,
        own: Mapping[str, Mapping[str, Feature]] | None = None,
    ) -> None:
        self._found, self.size, self.tasks, self._own = dict(found), size, tasks, own or {}

    def for_task(self, task: str) -> Features:
        """What the head of one task reads: its own features at places where a layer made some, else everyone's."""
        return Features({**self._found, **self._own[task]}, self.size, (task,)) if task in self._own else self

    def __getitem__(self, name: str) -> Tensor:
        return self.feature(name).value

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def feature(self, name: str) -> Feature:
        """The tensor of a place with what is known of it; `MissingPlace` where the head did not ask for it."""
        if name not in self._found:
            raise MissingPlace(
                f"The head wants {name!r}, which it does not name in `reads`. It reads: {', '.join(self._found)}."
            )
        return self._found[name]

    def tokens(self, name: str) -> Tensor:
        """(B, N, D) without prefix tokens; a map is flattened row by row."""
        feature = self.feature(name)
        if feature.value.dim() == 2:
            raise MissingPlace(f"{name} is one vector for each image, and this head needs a sequence or a map.")
        return feature.value[:, feature.prefix :] if feature.value.dim() == 3 else feature.value.flatten(1, -2)

    def map(self, name: str) -> Tensor:
        """(B, D, H, W), or (B, D, T, H, W) for clips: tokens without prefix are laid on the grid of this pass."""
        feature = self.feature(name)
        value = feature.value
        if value.dim() == 3:
            if feature.grid is None:
                raise MissingPlace(f"The tokens of {name} lie on no grid of rows and columns, and this head needs one.")
            value = value[:, feature.prefix :].reshape(len(value), *feature.grid, value.shape[-1])
        if value.dim() == 2:
            raise MissingPlace(f"{name} is one vector for each image, and this head needs a map.")
        return value.movedim(-1, 1)
