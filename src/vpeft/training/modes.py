"""Which part of a model is in training mode, and how to look at it in evaluation mode without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def to_training_mode(tuned: nn.Module, batch_norm: Literal["with_weights", "frozen"]) -> None:
    """Training mode: dropout and drop path act, and BatchNorm follows an explicit policy.

    A BatchNorm layer of the backbone whose own weights are frozen stays in eval under either policy: it normalises with
    its pre-trained statistics, which do not move, since they would not be in the adapter. One whose weights train moves
    its statistics along ("with_weights"; they are saved with the adapter) or not ("frozen"). Layers that a method added
    are always in training mode. LayerNorm and GroupNorm have no statistics and no such choice.
    """
    tuned.train()
    backbone = getattr(tuned, "backbone", tuned)
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            own_weights_train = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            if batch_norm == "frozen" or not own_weights_train:
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
