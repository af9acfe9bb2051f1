"""Measured memory: the tensors that a forward pass saves for the backward pass, and the peak of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vpeft.acceleration.saved_tensors import SavedForBackward as SavedForBackward
from vpeft.batch import Batch, run_model
from vpeft.training.result import PeakMemory
from vpeft.training.sizes import readable as readable


def saved_bytes(module: nn.Module, batch: Tensor | Batch, run: Callable[[nn.Module, Batch], Any] = run_model) -> int:
    """Return the bytes that one forward pass of `module` saves for the backward pass, in its present mode.

    Args:
        module: the model.
        batch: images (B, C, H, W), or a batch on the model's device, for heads that look at the targets.
        run: how the model is called; a task's own `run`.
    """
    given = batch if isinstance(batch, Batch) else Batch(batch)
    with torch.enable_grad(), SavedForBackward(module, tensors_of(given)) as saved:
        output = run(module, given)
        del output
        return saved.bytes


def tensors_of(part: Any) -> Iterator[Tensor]:
    """All tensors in a batch, or in parts of one."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from tensors_of(value)
    elif isinstance(part, (list, tuple, Batch)):
        for value in part:
            yield from tensors_of(value)


def process_peak() -> int | None:
    """Return the largest resident memory of this process in bytes; None if the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> None:
    """Reset the accelerator's peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the peaks of the process and of the accelerator, if `device` is one that counts."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(process=process_peak(), accelerator=on_device)
