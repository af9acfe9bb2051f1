"""How many directions features use, block by block, without an adapter and with it.

The effective rank of features (N, D) of N samples is exp(H(p)), where p are their singular values divided by the sum
and H is the entropy (Roy and Vetterli, EUSIPCO 2007). PT-PEFT (arXiv 2411.00029) measures with it how much of the
pre-trained space of representations a method keeps: it falls where features collapse onto fewer directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.backbones.blocks import Block
from vpeft.backbones.points import Layout
from vpeft.injection.tuned_model import TunedModel

from .similarity import linear_cka


def effective_rank(matrix: Tensor) -> float:
    """The exponential of the entropy of the normalised singular values: k for k equal ones, 0 for a matrix of zeros."""
    values = torch.linalg.svdvals(matrix.flatten(1).double())
    total = values.sum()
    if float(total) == 0.0:
        return 0.0
    parts = values / total
    parts = parts[parts > 0]
    return math.exp(float(-(parts * parts.log()).sum()))


@dataclass(frozen=True)
class BlockRank:
    """What leaves one block, over all samples.

    Attributes:
        name: of the block.
        before, after: effective rank of the features without the adapter and with it.
        centred_before, centred_after: the same of features of which the mean was taken away.
        alike: linear centred kernel alignment of both; 1 where they are alike.
    """

    name: str
    before: float
    after: float
    centred_before: float
    centred_after: float
    alike: float


def ranks_by_block(tuned: TunedModel, run: Callable[[Any], Any], batches: Sequence[Any]) -> list[BlockRank]:
    """Effective ranks of what leaves each block, without and with the adapter that is on.

    The feature of a sample is the mean over the tokens or cells of an image, and the last token of a text. Of a model
    that generates, the first pass counts, over the pictures and the words that are given.

    Args:
        tuned: the model, which evaluates.
        run: runs the model on a batch.
        batches: at least two samples in all.
    """
    name = tuned.active
    assert name is not None
    with torch.no_grad():
        with tuned.disable():
            before = features_by_block(tuned, run, batches)
        with tuned.enable(name):
            after = features_by_block(tuned, run, batches)
    return [
        BlockRank(
            block,
            effective_rank(plain),
            effective_rank(after[block]),
            effective_rank(plain - plain.mean(0)),
            effective_rank(after[block] - after[block].mean(0)),
            linear_cka(plain, after[block]),
        )
        for block, plain in before.items()
    ]


def features_by_block(tuned: TunedModel, run: Callable[[Any], Any], batches: Sequence[Any]) -> dict[str, Tensor]:
    """{name of a block: what leaves it (N, D)}, in the order of the forward pass; see `ranks_by_block`."""
    found: dict[str, list[Tensor]] = {}
    hooks = [Reader(block) for block in tuned.description.blocks if block.exit is not None]
    with _attached(hooks):
        for batch in batches:
            run(batch)
            for hook in hooks:
                if hook.seen is not None:
                    found.setdefault(hook.block.name, []).append(hook.seen)
                hook.seen = None
    return {name: torch.cat(parts) for name, parts in found.items()}


class Reader:
    """A forward hook that keeps the features of a block's first call."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.seen: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.seen is not None:
            return
        point = self.block.exit
        assert point is not None
        hidden = output[point.item] if isinstance(output, tuple) and isinstance(point.item, int) else output
        if self.block.layout is Layout.CHANNELS_FIRST:
            hidden = hidden.movedim(1, -1)
        if hidden.dim() > 3:
            hidden = hidden.flatten(1, -2)
        on_grid = self.block.grid is not None or self.block.layout is not Layout.TOKENS
        rows = hidden[:, self.block.prefix :].mean(1) if on_grid else hidden[:, -1]
        self.seen = rows.detach().float().cpu()


@contextmanager
def _attached(hooks: Sequence[Reader]) -> Iterator[None]:
    """Hooks behind ours, so that they see edited tensors."""
    handles = [
        hook.block.exit.module.register_forward_hook(hook)
        for hook in hooks
        if hook.block.exit is not None and hook.block.exit.side == "output"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
