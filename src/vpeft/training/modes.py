"""Which part of a model is in training mode, and how to look at it in evaluation mode without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def to_training_mode(tuned: nn.Module, batch_norm: Literal["with_weights", "frozen"]) -> None:
    """Training mode: dropout and drop path act, and BatchNorm of the backbone follows an explicit policy.

    Its layers normalise with their pre-trained statistics, which do not move, unless the adapter was attached with
    `statistics="adapt"`: then the statistics are the adapter's own, and move. "frozen" keeps them still even so. Layers
    that a method added are always in training mode. LayerNorm and GroupNorm have no statistics and no such choice.
    """
    tuned.train()
    if batch_norm == "frozen":
        for module in getattr(tuned, "backbone", tuned).modules():
            if isinstance(module, _BatchNorm):
                module.eval()


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
