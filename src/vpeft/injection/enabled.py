"""Switching adapters: what it gives back, so that it can be undone, and one for each sample of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .node import AdapterError

if TYPE_CHECKING:
    from .tuned_model import TunedModel


class Enabled:
    """What `enable` returns: leaving its `with` restores the adapter that was on before."""

    def __init__(self, tuned: TunedModel, previous: tuple[str | None, tuple[str, ...] | None]) -> None:
        self._tuned, self._previous = tuned, previous

    def __enter__(self) -> TunedModel:
        return self._tuned

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name, route = self._previous
        self._tuned._route = route
        self._tuned._activate(name if name is not None and name in self._tuned.adapters else None)


def forward_routed(tuned: TunedModel, images: Tensor, names: Sequence[str]) -> Tensor:
    """Images (B, C, H, W), each through its own adapter -> outputs (B, ...) in the order of the images."""
    if len(names) != images.shape[0]:
        raise AdapterError(f"{len(names)} adapters are enabled for a batch of {images.shape[0]} images.")
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    before = tuned._active
    try:
        for name in dict.fromkeys(names):
            rows = torch.tensor([i for i, wanted in enumerate(names) if wanted == name], device=images.device)
            tuned._activate(name)
            parts[name] = rows, tuned.logits(tuned.features(images[rows]))
    finally:
        tuned._activate(before)
    shapes = {tuple(out.shape[1:]) for _, out in parts.values()}
    if len(shapes) > 1:
        raise AdapterError(f"The heads of {', '.join(parts)} give outputs of different shapes: {sorted(shapes)}.")
    order = torch.cat([rows for rows, _ in parts.values()])
    return torch.cat([out for _, out in parts.values()])[torch.argsort(order)]
