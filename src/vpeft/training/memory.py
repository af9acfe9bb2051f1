"""Memory, measured: what a forward pass keeps for the backward pass, and the peak of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from vpeft.training.result import PeakMemory


class SavedForBackward:
    """Counts, while entered, the bytes that autograd keeps for the backward pass.

    Distinct storages are counted once and whole, since a view keeps all of its storage alive. Not counted: the
    parameters and buffers of `module`, and `inputs`, which exist anyway.

        with SavedForBackward(tuned, [images]) as saved:
            loss = tuned(images).sum()
        print(saved.bytes)
    """

    def __init__(self, module: nn.Module, inputs: Iterable[Tensor] = ()) -> None:
        free = [*module.parameters(), *module.buffers(), *inputs]
        # A storage is known by its address inside torch: the data pointer is 0 for all tensors on the meta device.
        self._free = {tensor.untyped_storage()._cdata for tensor in free}
        # Storages are held while counting, so that a freed one's address cannot come again for another.
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._stack = ExitStack()

    @property
    def bytes(self) -> int:
        """Bytes of all counted storages."""
        return sum(storage.nbytes() for storage in self._kept.values())

    @property
    def tensors(self) -> int:
        """How many distinct storages these are."""
        return len(self._kept)

    def __enter__(self) -> Self:
        self._kept.clear()
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._free:
            self._kept[storage._cdata] = storage
        return tensor


def _unpack(kept: Any) -> Any:
    return kept


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


def readable(count: float) -> str:
    """Bytes as people write them: 512 B, 3.4 MiB, 1.2 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
