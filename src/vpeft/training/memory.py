"""Measured memory: the tensors that a forward pass saves for the backward pass, and the peak of a run."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from vpeft.acceleration.saved_tensors import SavedForBackward as SavedForBackward
from vpeft.training.result import PeakMemory
from vpeft.training.sizes import readable as readable


def saved_bytes(module: nn.Module, images: Tensor) -> int:
    """Return the bytes that one forward pass of `module` on `images` (B, C, H, W) saves, in its present mode."""
    with torch.enable_grad(), SavedForBackward(module, [images]) as saved:
        output = module(images)
        del output
        return saved.bytes


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
