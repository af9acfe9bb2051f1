"""Fake tensors, which have shapes and a device but no values, so that a forward pass costs almost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def without_numbers(module: nn.Module, device: str = "cpu") -> Iterator[FakeTensorMode]:
    """A context in which parameters and buffers of `module` are fake tensors on `device`.

    `module` may be on the meta device. Autocast and the choice of attention kernels are those of `device`. Enter the
    returned mode for a forward pass. The original tensors are restored at the end.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    twins: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Tensor | None], str, Tensor]] = []

    def twin(tensor: Tensor) -> Tensor:
        # A tensor that two modules share is one tensor here too.
        if id(tensor) not in twins:
            with mode:
                bare: Tensor = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            twins[id(tensor)] = nn.Parameter(bare, requires_grad=tensor.requires_grad) if is_parameter else bare
        return twins[id(tensor)]

    try:
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        before.append((held, name, tensor))  # type: ignore[arg-type]
                        held[name] = twin(tensor)  # type: ignore[assignment]
        yield mode
    finally:
        for held, name, tensor in before:
            held[name] = tensor
