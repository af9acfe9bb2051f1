"""How alike features are before and after: linear centred kernel alignment.

Kornblith, Norouzi, Lee and Hinton, Similarity of Neural Network Representations Revisited (arXiv 1905.00414), eq. 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.backbones.points import Layout
from vpeft.injection.tuned_model import TunedModel


def linear_cka(x: Tensor, y: Tensor) -> float:
    """|Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features (N, D) and (N, E), Frobenius norms; 1 where they are alike.

    It does not change if either side is turned, moved or scaled. NaN where one side is constant.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def cka_by_block(tuned: TunedModel, batches: Sequence[Tensor]) -> list[tuple[str, float]]:
    """CKA of what leaves each block, with the active adapter and without, as the mean over an image's grid.

    Args:
        tuned: the model, which evaluates.
        batches: images (B, C, H, W).

    Returns:
        the names of the blocks, with the value of each, in the order of the forward pass.
    """
    without = _features(tuned, batches, on=False, last={})
    last = {name: tokens for name, (_, tokens) in without.items()}
    with_adapter = _features(tuned, batches, on=True, last=last)
    return [(name, linear_cka(value, with_adapter[name][0])) for name, (value, _) in without.items()]


def _features(
    tuned: TunedModel, batches: Sequence[Tensor], *, on: bool, last: dict[str, int]
) -> dict[str, tuple[Tensor, int]]:
    """Name of a block -> features (N, D) of all images, and how many tokens its grid has."""
    found: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    device = next(tuned.backbone.parameters()).device
    name = tuned.active
    assert name is not None
    with torch.inference_mode(), tuned.enable(name) if on else tuned.disable(), _reading(tuned, found, counts, last):
        for images in batches:
            tuned.features(images.to(device))
    return {block: (torch.cat(parts), counts[block]) for block, parts in found.items()}


@contextmanager
def _reading(
    tuned: TunedModel, found: dict[str, list[Tensor]], counts: dict[str, int], last: dict[str, int]
) -> Iterator[None]:
    """Hooks that read what leaves each block; behind ours, so that they see edited tensors."""
    handles = []
    for block in tuned.description.blocks:
        if block.exit is None or block.exit.side != "output":
            continue

        def read(module: nn.Module, args: Any, output: Any, block: Any = block) -> None:
            hidden = output[block.exit.item] if isinstance(output, tuple) else output
            if block.layout is Layout.CHANNELS_FIRST:
                hidden = hidden.movedim(1, -1)
            if hidden.dim() > 3:
                hidden = hidden.flatten(1, -2)
            # inserted tokens stand between the prefix and the grid, so the grid is what comes last
            counts.setdefault(block.name, hidden.shape[1] - block.prefix)
            grid = hidden[:, -last.get(block.name, counts[block.name]) :]
            found.setdefault(block.name, []).append(grid.float().mean(1).cpu())

        handles.append(block.exit.module.register_forward_hook(read))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
