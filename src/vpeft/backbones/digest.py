"""The digest of a backbone's weights: which exact tensors an adapter, a cached feature or a record belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .backbone import Backbone

SAMPLES = 8  # values of each tensor that show a write which leaves no other trace
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)  # in which the same weights are recognised
COMPARED = 64  # values of all tensors together, by which two rounded copies are compared


@dataclass(frozen=True)
class _State:
    """How a tensor stood when the digest was computed; `sample` shows writes through `.data`, which count nowhere."""

    tensor: ref[Tensor]
    version: int
    address: int
    sample: bytes

    def still(self, tensor: Tensor) -> bool:
        """Whether `tensor` is the same one and nobody wrote to it."""
        return (
            self.tensor() is tensor
            and self.version == tensor._version
            and self.address == tensor.data_ptr()
            and self.sample == _sample(tensor)
        )


_KNOWN: WeakKeyDictionary[nn.Module, tuple[dict[str, _State], str]] = WeakKeyDictionary()
_ROUNDED: WeakKeyDictionary[nn.Module, tuple[str, dict[str, str]]] = WeakKeyDictionary()


def weights_digest(description: Backbone) -> str:
    """sha256 over names, types, shapes and bytes of the model's tensors as they are now, its classifier left out.

    Of a host it is the whole model, with all its heads. Counters of batches are left out. The digest is computed once:
    a further call compares identity, version and address of every tensor and a few of its values, and reads all bytes
    only where one of them differs.
    """
    tensors = frozen_tensors(description)
    known = _KNOWN.get(description.root)
    if known is not None:
        states, digest = known
        if states.keys() == tensors.keys() and all(states[key].still(value) for key, value in tensors.items()):
            return digest
    digest = tensors_digest(tensors)
    if not any(value.is_inference() for value in tensors.values()):  # these count no versions
        states = {key: _State(ref(v), v._version, v.data_ptr(), _sample(v)) for key, v in tensors.items()}
        _KNOWN[description.root] = states, digest
    return digest


def rounded_digests(description: Backbone) -> dict[str, str]:
    """Digests of the weights as they are after a conversion to each of `PRECISIONS`, by the name of the precision.

    Two copies of a checkpoint in different precisions agree in the coarser one, unless these are float16 and bfloat16.
    """
    own = weights_digest(description)
    known = _ROUNDED.get(description.root)
    if known is None or known[0] != own:
        tensors = frozen_tensors(description)
        known = own, {_name(kind): tensors_digest(tensors, kind) for kind in PRECISIONS}
        _ROUNDED[description.root] = known
    return dict(known[1])


def precision_of(description: Backbone) -> str:
    """The name of the coarsest floating-point type among the model's tensors."""
    kinds = {value.dtype for value in frozen_tensors(description).values() if value.is_floating_point()}
    return _name(max(kinds, key=lambda kind: torch.finfo(kind).eps)) if kinds else _name(torch.float32)


def compared_values(description: Backbone) -> list[float]:
    """Some values of the model's floating-point tensors, at places that depend on names and shapes only."""
    tensors = frozen_tensors(description)
    flat = [tensors[key].detach() for key in sorted(tensors) if tensors[key].is_floating_point()]
    total = sum(value.numel() for value in flat)
    found: list[float] = []
    before = 0
    for value in flat:
        while len(found) < min(COMPARED, total) and (at := len(found) * total // COMPARED - before) < value.numel():
            found.append(float(gathered(value).flatten()[at]))
        before += value.numel()
    return found


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def frozen_tensors(description: Backbone) -> dict[str, Tensor]:
    """Parameters and stored buffers of the model by name, without those of its classifier and counters of batches.

    A host's own forward pass uses its classifier, so there nothing but the counters is left out.
    """
    unused = {id(p) for p in description.classifier.parameters()} if description.host is None else set()
    found: dict[str, Tensor] = dict(description.root.named_parameters(remove_duplicate=False))
    stored = description.root.state_dict(keep_vars=True)
    found |= {key: value for key, value in description.root.named_buffers() if key in stored}
    return {key: value for key, value in found.items() if id(value) not in unused and "num_batches_tracked" not in key}


def tensors_digest(tensors: Mapping[str, Tensor], precision: torch.dtype | None = None) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names.

    Args:
        tensors: by name.
        precision: to which floating-point tensors are converted first; None leaves them as they are.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach()
        if precision is not None and value.is_floating_point():
            value = gathered(value).to(precision)
        digest.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def gathered(value: Tensor) -> Tensor:
    """The whole tensor, where a process holds a shard of it (FSDP2); every process must ask. Any other is itself."""
    whole: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def _bytes(value: Tensor) -> Any:
    return gathered(value).cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _sample(value: Tensor) -> bytes:
    """A few values, spread over the first axis and the last one; of a shard, those that this process has."""
    value = value.detach()
    value = value.to_local() if hasattr(value, "to_local") else value
    if not value.numel():
        return b""
    while value.dim() > 1:
        value = value[-1]
    return bytes(_bytes(value[:: max(1, len(value) // SAMPLES)])) if value.dim() else bytes(_bytes(value))
