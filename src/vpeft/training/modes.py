"""Training mode of a tuned model, and a temporary evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def to_training_mode(tuned: nn.Module) -> None:
    """Set training mode, in which dropout and drop path are active.

    BatchNorm layers of a TunedModel's backbone use their fixed pre-trained statistics, unless the adapter was attached
    with `statistics="adapt"`; then training updates the statistics, which belong to the adapter. Layers of methods are
    always in training mode. LayerNorm and GroupNorm have no statistics.
    """
    tuned.train()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A context in evaluation mode; it restores the mode of each submodule at its end."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
