"""Which part of a model is in training mode, and how to look at it in evaluation mode without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def to_training_mode(tuned: nn.Module) -> None:
    """Training mode: dropout and drop path act.

    BatchNorm layers of a TunedModel's backbone normalise with their pre-trained statistics, which do not move, unless
    the adapter was attached with `statistics="adapt"`: then the statistics are the adapter's own, and move. Layers that
    a method added are always in training mode. LayerNorm and GroupNorm have no statistics and no such choice.
    """
    tuned.train()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each submodule is in the mode it was in, whichever that was."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
