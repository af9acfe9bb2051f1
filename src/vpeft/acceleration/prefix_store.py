"""Rows of frozen outputs, one for each image: in memory, or memory-mapped in a folder that other runs find again.

A folder is named by the digest of all facts that its numbers depend on, and is complete once it has that name: it is
written under another one and renamed at the end. A folder whose facts or sizes are not those expected is not used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

FACTS = "store.json"
FORMAT = 1


@dataclass(frozen=True)
class Spec:
    """One image's row of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Store:
    """`arrays[j]` is (images, *shape) of the j-th tensor."""

    def __init__(self, arrays: list[Tensor], specs: tuple[Spec, ...]) -> None:
        self.arrays, self.specs = arrays, specs
        self._partial: Path | None = None
        self._final: Path | None = None
        self._facts: dict[str, Any] = {}

    @classmethod
    def in_memory(cls, count: int, specs: Sequence[Spec]) -> Self:
        """Rows in memory, to be filled."""
        return cls([torch.empty((count, *spec.shape), dtype=spec.dtype) for spec in specs], tuple(specs))

    @classmethod
    def on_disk(cls, folder: Path, count: int, specs: Sequence[Spec], facts: Mapping[str, Any]) -> Self:
        """Rows in a folder of its own below `folder`, to be filled and then kept by `finish`."""
        complete = _facts(count, specs, facts)
        final = folder / _key(complete)
        partial = folder / f".{final.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        store = cls([_mapped(partial / f"{j}.bin", count, spec) for j, spec in enumerate(specs)], tuple(specs))
        store._partial, store._final, store._facts = partial, final, complete
        return store

    @classmethod
    def find(cls, folder: Path, count: int, specs: Sequence[Spec], facts: Mapping[str, Any]) -> Self | None:
        """The complete folder of these facts, or None where there is none or it is not what it should be."""
        complete = _facts(count, specs, facts)
        final = folder / _key(complete)
        try:
            stated = json.loads((final / FACTS).read_text())
            sizes = [(final / f"{j}.bin").stat().st_size for j in range(len(specs))]
        except (OSError, json.JSONDecodeError):
            return None
        if stated != complete or sizes != [count * spec.bytes for spec in specs]:
            return None
        return cls([_mapped(final / f"{j}.bin", count, spec) for j, spec in enumerate(specs)], tuple(specs))

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return sum(array.numel() * array.element_size() for array in self.arrays)

    def put(self, start: int, rows: Sequence[Tensor]) -> None:
        """Write the rows of the images from `start` on."""
        for array, value in zip(self.arrays, rows, strict=True):
            array[start : start + len(value)] = value

    def rows(self, indices: Tensor) -> list[Tensor]:
        """The rows of these images, each (B, *shape)."""
        return [array.index_select(0, indices) for array in self.arrays]

    def finish(self) -> None:
        """Make a folder complete: its files are on the disk before it gets its name."""
        if self._partial is None or self._final is None:
            return
        for path in self._partial.glob("*.bin"):
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        (self._partial / FACTS).write_text(json.dumps(self._facts, sort_keys=True))
        shutil.rmtree(self._final, ignore_errors=True)
        os.replace(self._partial, self._final)
        self._partial = None

    def discard(self) -> None:
        """Remove what is not complete."""
        if self._partial is not None:
            shutil.rmtree(self._partial, ignore_errors=True)


def digest_of(rows: Sequence[Tensor]) -> str:
    """A digest of rows bit by bit, as of what a frozen part gives for fixed images: it tells whose rows are whose."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{tuple(row.shape)} {row.dtype}".encode())
        digest.update(row.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def room(gib: float, folder: Path | None) -> tuple[float, str]:
    """The bytes that rows may take in `folder`, or in memory, and the words for it."""
    allowed = gib * 2**30
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        # A full disk breaks more than this run: a tenth of what is free stays free.
        return (0.9 * free, f"are free in {folder}") if 0.9 * free < allowed else (allowed, "are allowed")
    try:
        available = 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return allowed, "are allowed"
    return (available, "is half of the free memory") if available < allowed else (allowed, "are allowed")


def mebibytes(count: float) -> str:
    """Bytes in MiB, or GiB where it is half of one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _mapped(path: Path, count: int, spec: Spec) -> Tensor:
    size = count * math.prod(spec.shape)
    flat: Tensor = torch.from_file(str(path), shared=True, size=size, dtype=spec.dtype)
    return flat.view(count, *spec.shape)


def _facts(count: int, specs: Sequence[Spec], facts: Mapping[str, Any]) -> dict[str, Any]:
    listed = [[list(spec.shape), str(spec.dtype)] for spec in specs]
    whole = {"format": FORMAT, "images": count, "tensors": listed, **facts}
    plain: dict[str, Any] = json.loads(json.dumps(whole, sort_keys=True, default=str))
    return plain


def _key(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
