"""Weights from a file or a state dict: read without running code, compared with the model, loaded whole or refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import VpeftError
from ..guarded import opened, printable
from .positions import is_position, resized, say

Difference = Literal["missing", "unexpected", "shape"]
DIFFERENCES: tuple[Difference, ...] = ("missing", "unexpected", "shape")
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model", "model_state_dict")  # where training checkpoints keep the weights
SHOWN = 6
EXPANSION = 100  # weights hardly compress; zeros do by a thousand
DEEP = 64  # tables inside each other


class BadWeights(VpeftError):
    """Weights that cannot be read, or that do not fit the model."""


@dataclass
class Report:
    """What was loaded, and what was not.

    Attributes:
        loaded: keys that were copied.
        notes: sentences on what was resized or left out.
    """

    loaded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_weights(source: str | Path | Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """Tensors by key; of a file with several tables inside, nested keys are joined by dots.

    Args:
        source: a .safetensors, .npz, .pth, .pt, .bin or .ckpt file, or a state dict.
        prefix: keep the keys that start with this, without it.

    Raises:
        BadWeights: no such file, damaged, of another kind, a pickle that wants to run code, or no key has the prefix.
    """
    name = "The state dict" if isinstance(source, Mapping) else str(source)
    whole = source if isinstance(source, Mapping) else _read(Path(source))
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
    return kept


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


def _read(path: Path) -> Mapping[str, Any]:
    if not os.path.isfile(path):  # which is False for impossible names too
        raise BadWeights(f"There is no file of weights {str(path)!r}{', but a folder' if os.path.isdir(path) else ''}.")
    kind = path.suffix.lower()
    try:
        with opened(path) as file:
            if kind == ".npz":
                return _arrays(file, path.stat().st_size)
            if kind in SUFFIXES and kind != ".safetensors":
                whole = torch.load(file, map_location="cpu", weights_only=True)
                if not isinstance(whole, Mapping):
                    raise ValueError(f"it holds a {type(whole).__name__}, not a table of tensors")
                return whole
        if kind == ".safetensors":
            return load_file(path)
    except SafetensorError as error:
        raise BadWeights(f"{path} is no complete safetensors file ({error}). Get the file again.") from None
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
    raise BadWeights(f"{path} has the ending {kind!r}; weights come as {', '.join(SUFFIXES)}.")


def _arrays(file: BinaryIO, size: int) -> Mapping[str, Any]:
    """The arrays of an .npz archive; no pickle, and no more than its compressed bytes can be."""
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
    given, own = read_weights(source, prefix), model.state_dict()
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
