"""Count the bytes that a forward pass saves for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

_COUNTING: list[SavedForBackward] = []


class SavedForBackward:
    """A context that counts the bytes that autograd saves for the backward pass.

    Each storage is counted once and as a whole, because a view keeps its whole storage alive. Parameters and buffers of
    `module`, copies of them that persist between steps, and `inputs` are not counted, because they exist anyway.

        with SavedForBackward(tuned, [images]) as saved:
            loss = tuned(images).sum()
        print(saved.bytes)
    """

    def __init__(self, module: nn.Module, inputs: Iterable[Tensor] = ()) -> None:
        casts = [tensor for one in module.modules() for tensor in one.__dict__.get("vpeft_cast", ())]
        free = [*module.parameters(), *module.buffers(), *inputs, *casts]
        # A storage is known by its address inside torch: the data pointer is 0 for all tensors on the meta device.
        self._free = {tensor.untyped_storage()._cdata for tensor in free}
        # Storages are kept alive while counting, so that no address is used again for another storage.
        self._kept: dict[int, torch.UntypedStorage] = {}
        self._stack = ExitStack()

    @property
    def bytes(self) -> int:
        """Bytes of all counted storages."""
        return sum(storage.nbytes() for storage in self._kept.values())

    @property
    def tensors(self) -> int:
        """The number of counted storages."""
        return len(self._kept)

    def __enter__(self) -> Self:
        self._kept.clear()
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack))
        _COUNTING.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _COUNTING.remove(self)
        self._stack.close()

    def _pack(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._free:
            self._kept[storage._cdata] = storage
        # Detached: a function that saves its own output would otherwise keep itself alive if no backward pass follows.
        # Autograd restores the history when it unpacks.
        return tensor.detach()


def count_saved(tensors: Iterable[Any]) -> None:
    """Count tensors that are saved without autograd: the inputs of blocks that run again in the backward pass."""
    for counter in _COUNTING:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                counter._pack(tensor)


def _unpack(kept: Any) -> Any:
    return kept
