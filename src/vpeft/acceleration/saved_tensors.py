"""What a forward pass keeps for the backward pass, counted to the byte."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

_COUNTING: list[SavedForBackward] = []


class SavedForBackward:
    """Counts, while entered, the bytes that autograd keeps for the backward pass.

    Distinct storages are counted once and whole, since a view keeps all of its storage alive. Not counted: the
    parameters and buffers of `module`, copies of them that stay from step to step, and `inputs`, which exist anyway.

        with SavedForBackward(tuned, [images]) as saved:
            loss = tuned(images).sum()
        print(saved.bytes)
    """

    def __init__(self, module: nn.Module, inputs: Iterable[Tensor] = ()) -> None:
        casts = [tensor for one in module.modules() for tensor in one.__dict__.get("vpeft_cast", ())]
        free = [*module.parameters(), *module.buffers(), *inputs, *casts]
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
        # Without its history: what a function keeps of its own output would else keep the function, for ever where no
        # backward pass follows. Autograd puts the history back when it unpacks.
        return tensor.detach()


def held(tensors: Iterable[Any]) -> None:
    """Count tensors that are kept in another way than by autograd: the inputs of what is to be run again."""
    for counter in _COUNTING:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                counter._pack(tensor)


def _unpack(kept: Any) -> Any:
    return kept
