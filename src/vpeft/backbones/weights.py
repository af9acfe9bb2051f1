"""Weights from a file or a state dict: read without running code, compared with the model, loaded whole or refused.

A file is read once, into memory: a file that is mapped can change after it was checked, and end the process when it is
cut short.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import VpeftError
from ..guarded import parse_tensor_header, printable, read_buffer
from .positions import is_position, resized, say

Difference = Literal["missing", "unexpected", "shape"]
DIFFERENCES: tuple[Difference, ...] = ("missing", "unexpected", "shape")
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # where training checkpoints keep the weights
SHOWN = 6
EXPANSION = 100  # weights hardly compress; zeros do by a thousand
DEEP = 64  # tables inside each other
MOST_BYTES = 64 * 2**30  # of a file; the largest vision tower that is public has 24 GiB
# The types as the format safetensors names them.
_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class BadWeights(VpeftError):
    """Weights that cannot be read, or that do not fit the model."""


@dataclass
class Report:
    """What was loaded, and what was not.

    Attributes:
        loaded: keys that were copied.
        notes: sentences on what was resized or left out.
        sha256: of the bytes that were read; None of a state dict.
    """

    loaded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: str | None = None


def read_weights(source: str | Path | Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Tensors by key; of a file with several tables inside, nested keys are joined by dots.

    Args:
        source: a .safetensors, .npz, .pth, .pt, .bin or .ckpt file, or a state dict.
        prefix: keep the keys that start with this, without it.

    Raises:
        BadWeights: no such file, damaged, of another kind, a pickle that wants to run code, or no key has the prefix.
    """
    return _tensors(source, prefix)[0]


def _tensors(source: str | Path | Mapping[str, Any], prefix: str) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and the sha256 of the bytes that they were read from."""
    name = "The state dict" if isinstance(source, Mapping) else str(source)
    whole, checksum = (source, None) if isinstance(source, Mapping) else _read(Path(source))
    wrapped = [whole[key] for key in WRAPPERS if isinstance(whole.get(key), Mapping)]
    flat: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    # a prefix may name a key of the file itself ("teacher.") or one inside the wrapper ("module.")
    for table in (*wrapped, whole) if not prefix else (whole, *wrapped):
        flat = _flat(table)
        kept = {key[len(prefix) :]: value for key, value in flat.items() if key.startswith(prefix)}
        if kept:
            break
    if not flat:
        raise BadWeights(f"{name} holds no tensors.")
    if not kept:
        tops = sorted({key.partition(".")[0] for key in flat})
        raise BadWeights(f"No key of {name} starts with {prefix!r}. Keys start with: {', '.join(tops[:8])}.")
    return kept, checksum


def _flat(values: Mapping[str, Any], before: str = "", depth: int = 0) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if depth > DEEP:
        raise BadWeights(f"The weights hold tables more than {DEEP} deep inside each other.")
    for key, value in values.items():
        if isinstance(value, Tensor):
            found[f"{before}{key}"] = value
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[f"{before}{key}"] = torch.from_numpy(np.array(value))
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.", depth + 1)
    return found


def _read(path: Path) -> tuple[Mapping[str, Any], str]:
    """What a file holds, and the sha256 of its bytes."""
    if not os.path.isfile(path):  # which is False for impossible names too
        raise BadWeights(f"There is no file of weights {str(path)!r}{', but a folder' if os.path.isdir(path) else ''}.")
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise BadWeights(f"{path} has the ending {kind!r}; weights come as {', '.join(SUFFIXES)}.")
    data = read_buffer(path, str(path), BadWeights, MOST_BYTES)
    try:
        whole: Any = _safetensors(data, path) if kind == ".safetensors" else _foreign(data, kind)
    except BadWeights:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" (it names {named[1]})" if named else ""
        raise BadWeights(
            f"{path} is a pickle that holds more than tensors{what}, and reading it could run code. vpeft reads weights"
            " only. Save the state dict alone, best as .safetensors."
        ) from None
    except MemoryError:
        raise BadWeights(
            f"{path} cannot be read as weights: there is no memory for what it says that it holds."
        ) from None
    except Exception as error:  # the readers of foreign formats raise whatever a damaged file leads them to
        said = str(error).partition("\n")[0] or type(error).__name__
        raise BadWeights(f"{path} cannot be read as weights: {printable(said, 300)}") from None
    return whole, hashlib.sha256(data).hexdigest()


def _safetensors(data: bytearray, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which share the memory that the file was read into."""
    found: dict[str, Tensor] = {}
    base = 8 + int.from_bytes(data[:8], "little")
    for name, entry in parse_tensor_header(data, str(path), BadWeights)[1].items():
        dtype, count, start = _TYPES[entry.kind], math.prod(entry.shape), base + entry.start
        if not count:
            found[name] = torch.empty(entry.shape, dtype=dtype)
            continue
        # the header may have any length, and some processors want numbers at places that are multiples of their size
        held = data if start % dtype.itemsize == 0 else data[start : base + entry.end]
        offset = start if held is data else 0
        found[name] = torch.frombuffer(held, dtype=dtype, count=count, offset=offset).view(entry.shape)
    return found


def _foreign(data: bytearray, kind: str) -> Mapping[str, Any]:
    """What a file of numpy or torch holds, read as numbers only."""
    if kind == ".npz":
        return _arrays(data)
    whole = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(whole, Mapping):
        raise ValueError(f"it holds a {type(whole).__name__}, not a table of tensors")
    return whole


def _arrays(data: bytearray) -> Mapping[str, Any]:
    """The arrays of an .npz archive; no pickle, and no more than its compressed bytes can be."""
    file, size = io.BytesIO(data), len(data)
    held = sum(entry.file_size for entry in zipfile.ZipFile(file).infolist())
    if held > 2**20 + EXPANSION * size:
        raise ValueError(f"it says that its {size} bytes hold {held}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    prefix: str = "",
    allow: Sequence[Difference] = (),
    leave_out: Sequence[str] = (),
    grid: tuple[int, int] | None = None,
    name: str | None = None,
    optional: frozenset[str] = frozenset(),
) -> Report:
    """Copy weights into a model; tables of positions are resized to its grid, and it is said.

    Args:
        model: where to.
        source, prefix: see `read_weights`.
        allow: differences that are accepted: "missing" tensors keep what the model has, "unexpected" ones and those of
            another "shape" are left out.
        leave_out: first words of keys that are dropped in any case, for instance the classifier's.
        grid: of the model's patches, where it is not square.
        name: of the model, for messages.
        optional: keys that may be missing, because the feature does not depend on them.

    Raises:
        BadWeights: with the keys and shapes that differ; nothing is changed then.
    """
    unknown = sorted(set(allow) - set(DIFFERENCES))
    if unknown:
        raise BadWeights(f"There is no difference {unknown[0]!r} to allow; there are: {', '.join(DIFFERENCES)}.")
    named, report = name or type(model).__name__, Report()
    (given, report.sha256), own = _tensors(source, prefix), model.state_dict()
    dropped = [key for key in given if key.partition(".")[0] in leave_out and key not in own]
    if dropped:
        report.notes.append(f"Left out, as the model has no classifier: {_some(dropped)}.")
        given = {key: value for key, value in given.items() if key not in dropped}
    for key in [key for key in given if key in own and is_position(key) and given[key].shape != own[key].shape]:
        fitted = resized(given[key], own[key].shape, grid)
        if fitted is not None:
            report.notes.append(say(f"{named} ({key})", tuple(given[key].shape), tuple(own[key].shape)))
            given[key] = fitted
    shapes = {key for key in given.keys() & own.keys() if given[key].shape != own[key].shape}
    found: dict[Difference, list[str]] = {
        "missing": sorted(k for k in own.keys() - given.keys() - optional if not k.endswith("num_batches_tracked")),
        "unexpected": sorted(given.keys() - own.keys()),
        "shape": sorted(shapes),
    }
    refused = [kind for kind in DIFFERENCES if found[kind] and kind not in allow]
    if refused:
        raise BadWeights(_differences(named, found, refused, given, own))
    for kind in DIFFERENCES:
        if found[kind]:
            report.notes.append(f"Allowed, {kind}: {_some(found[kind])}.")
    with torch.no_grad():
        for key in sorted((given.keys() & own.keys()) - shapes):
            own[key].copy_(given[key])
            report.loaded.append(key)
    if not report.loaded:
        raise BadWeights(f"Nothing in the weights is named as in {named}, so nothing would be loaded.")
    return report


def _differences(
    name: str,
    found: Mapping[Difference, list[str]],
    refused: Sequence[Difference],
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> str:
    told = {
        "missing": f"Missing: {_some(found['missing'])}.",
        "unexpected": f"Unknown to the model: {_some(found['unexpected'])}.",
        "shape": "Of another shape: "
        + _some([f"{k} {tuple(given[k].shape)}, the model has {tuple(own[k].shape)}" for k in found["shape"]], "; ")
        + ".",
    }
    hint = ""
    if len(found["missing"]) == len(own) and given:
        first = next(iter(given)).partition(".")[0]
        if all(key.startswith(f"{first}.") for key in given):
            hint = f" Every key starts with {first!r}; try prefix={first + '.'!r}."
    allowed = ", ".join(repr(kind) for kind in refused)
    return (
        f"The weights do not fit {name}. {' '.join(told[kind] for kind in refused)}{hint}"
        f" To load them all the same, allow {allowed}."
    )


def _some(keys: Sequence[str], joint: str = ", ") -> str:
    more = f"{joint}and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return joint.join(keys[:SHOWN]) + more


def file_digest(path: str | Path) -> str:
    """sha256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
