"""Memory, measured: what a forward pass keeps for the backward pass, and the peak of a run."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from vpeft.acceleration.saved_tensors import SavedForBackward as SavedForBackward
from vpeft.training.result import PeakMemory
from vpeft.training.sizes import readable as readable


def saved_bytes(module: nn.Module, images: Tensor) -> int:
    """Bytes kept for the backward pass by one forward of `module` on `images` (B, 3, H, W), in its present mode."""
    with torch.enable_grad(), SavedForBackward(module, [images]) as saved:
        output = module(images)
        del output
        return saved.bytes


def process_peak() -> int | None:
    """The most resident memory this process has had, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: torch.device) -> None:
    """Start the accelerator's peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> PeakMemory:
    """The peaks so far, of the process and of the accelerator if `device` is one that counts."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(process=process_peak(), accelerator=on_device)
