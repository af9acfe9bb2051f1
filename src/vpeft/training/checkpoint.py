"""A training run on disk: one safetensors file with tensors and a JSON header, replaced atomically. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from vpeft.atomic import replace_file
from vpeft.backbones.digest import tensors_digest
from vpeft.errors import VpeftError
from vpeft.guarded import TENSOR_BYTES, parse_json, parse_tensor_header, read_bytes, short

FORMAT = 2
READ = (1, 2)  # format 1 has no digest
_HEADER = "vpeft_checkpoint"
_DIGEST = "vpeft_digest"


class BadCheckpoint(VpeftError):
    """A checkpoint cannot be read, or belongs to another run."""


@dataclass
class Checkpoint:
    """Tensors by group (`model`, `best`, `optimiser`, `random`) and name, and plain JSON facts."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically: a reader, also after a kill, finds the old file or the new one."""
    flat = {
        f"{group}/{name}": tensor.detach().to("cpu").contiguous()
        for group, named in checkpoint.tensors.items()
        for name, tensor in named.items()
    }
    facts = json.dumps({"format": FORMAT, **checkpoint.facts}, allow_nan=False)
    flat = _apart(flat)
    header = {_HEADER: facts, _DIGEST: _digest(flat, facts)}
    replace_file(
        path,
        lambda fresh: save_file(flat, fresh, metadata=header),
        kept="The previous checkpoint is intact: the same command continues from it." if path.is_file() else "",
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of `write_checkpoint`.

    Raises:
        BadCheckpoint: the file is no checkpoint, has another format version, or is damaged in any byte.
    """
    afresh = "Delete it to start afresh."
    try:
        # Read once: in between two readings a running training may have replaced the file.
        data = read_bytes(path, str(path), BadCheckpoint, TENSOR_BYTES)
        metadata, _ = parse_tensor_header(data, str(path), BadCheckpoint)
        flat = load(data)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path} cannot be read as a checkpoint ({error}) {afresh}") from None
    except (SafetensorError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise BadCheckpoint(f"{path} cannot be read as a checkpoint ({error}). {afresh}") from None
    said = metadata.get(_HEADER)
    if said is None:
        raise BadCheckpoint(f"{path} is a safetensors file but no training checkpoint. Give another output folder.")
    facts = parse_json(said, f"{path}: its header", BadCheckpoint)
    if not isinstance(facts, dict) or facts.get("format") not in READ:
        known = " and ".join(map(str, READ))
        raise BadCheckpoint(f"{path} has another checkpoint format than {known}. {afresh}")
    version = facts.pop("format")
    if (version > 1 or _DIGEST in metadata) and metadata.get(_DIGEST) != _digest(flat, said):
        raise BadCheckpoint(f"{path} was changed after it was saved: the digest of its content differs. {afresh}")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, between, name = key.partition("/")
        if not between:
            raise BadCheckpoint(f"{path} holds {short(key)}, which is in none of a checkpoint's groups. {afresh}")
        tensors.setdefault(group, {})[name] = tensor
    return Checkpoint(tensors, facts)


def _digest(flat: Mapping[str, Tensor], facts: str) -> str:
    """Return the sha256 of the facts and of names, types, shapes and bytes of the tensors."""
    return hashlib.sha256(f"{tensors_digest(flat)} {facts}".encode()).hexdigest()


def must_agree(there: dict[str, Any], here: dict[str, Any], folder: Path | None) -> None:
    """Compare the identity in the checkpoint of `folder` with that of the present run.

    Raises:
        BadCheckpoint: it belongs to another run; the message lists the differences.
    """
    differences = _differences(there, here)
    if differences:
        raise BadCheckpoint(
            f"The checkpoint in {folder} belongs to another run: {'; '.join(differences[:5])}. "
            "Give another output folder, or resume=False to start afresh."
        )


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `<key>/<parameter's name>`; its groups must have `names`."""
    return {
        f"{key}/{name}": value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        for group in optimiser.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `optimiser_tensors`. They do not include rates, which the schedule sets."""
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for address, tensor in tensors.items():
        key, _, name = address.partition("/")
        by_parameter.setdefault(name, {})[key] = tensor
    state = optimiser.state_dict()
    names = [name for group in optimiser.param_groups for name in group["names"]]
    state["state"] = {position: by_parameter[name] for position, name in enumerate(names) if name in by_parameter}
    optimiser.load_state_dict(state)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory (tied weights, expanded buffers), because the format refuses these."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return apart


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in [*there, *(key for key in here if key not in there)]:
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old!r} and is {new!r}")
    return found
