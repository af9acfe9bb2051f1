"""Stored rows of tensors, one for each image: in memory, or memory-mapped in a folder that later runs can use.

The name of a folder is the digest of all facts that the numbers depend on. The folder gets this name when it is
complete. If its facts, sizes or digests of rows differ from the expected ones, it is not used and is written again.
"""

from __future__ import annotations

import errno
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

from vpeft.atomic import disk_full, is_full, new_folder, sweep
from vpeft.errors import VpeftError
from vpeft.guarded import read_json

FACTS = "store.json"
FORMAT = 2
BLOCK = 64 * 2**20  # bytes of rows for each digest
DIGESTS = "digests"


class BadStore(VpeftError):
    """A stored cache cannot be read; it is written again."""


@dataclass(frozen=True)
class Spec:
    """One image's row of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Store:
    """Rows of several tensors: `arrays[j]` has the shape (images, *shape of the j-th tensor)."""

    def __init__(self, arrays: list[Tensor], specs: tuple[Spec, ...]) -> None:
        self.arrays, self.specs = arrays, specs
        self._partial: Path | None = None
        self._final: Path | None = None
        self._facts: dict[str, Any] = {}
        self._lock = -1

    @classmethod
    def in_memory(cls, count: int, specs: Sequence[Spec]) -> Self:
        """Return an empty store in memory."""
        return cls([torch.empty((count, *spec.shape), dtype=spec.dtype) for spec in specs], tuple(specs))

    @classmethod
    def on_disk(cls, folder: Path, count: int, specs: Sequence[Spec], facts: Mapping[str, Any]) -> Self:
        """Return an empty store in a new folder inside `folder`; `finish` completes it."""
        complete = _facts(count, specs, facts)
        final = folder / _key(complete)
        for left in folder.glob(".*.partial"):  # remains of any killed run, because they are large
            sweep(folder / left.name[1:].partition(".")[0])
        partial, lock = new_folder(final)
        try:
            for j, spec in enumerate(specs):
                _allocate(partial / f"{j}.bin", count * spec.bytes, folder)
            store = cls([_mapped(partial / f"{j}.bin", count, spec) for j, spec in enumerate(specs)], tuple(specs))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            _close(lock)
            raise
        store._partial, store._final, store._facts, store._lock = partial, final, complete, lock
        return store

    @classmethod
    def find(cls, folder: Path, count: int, specs: Sequence[Spec], facts: Mapping[str, Any]) -> Self | None:
        """Return the complete store with these facts; None if there is none or it is damaged.

        Every byte of the rows is compared with the stored digests.
        """
        complete = _facts(count, specs, facts)
        final = folder / _key(complete)
        paths = [final / f"{j}.bin" for j in range(len(specs))]
        try:
            stated = read_json(final / FACTS, str(final / FACTS), BadStore)
            sizes = [path.stat().st_size for path in paths]
        except (OSError, BadStore):
            return None
        digests = stated.pop(DIGESTS, None) if isinstance(stated, dict) else None
        if stated != complete or sizes != [count * spec.bytes for spec in specs]:
            return None
        try:
            if digests != [_digests(path) for path in paths]:
                return None
        except OSError:
            return None
        return cls([_mapped(path, count, spec) for path, spec in zip(paths, specs, strict=True)], tuple(specs))

    @property
    def bytes(self) -> int:
        """Size of all rows in bytes."""
        return sum(array.numel() * array.element_size() for array in self.arrays)

    def put(self, start: int, rows: Sequence[Tensor]) -> None:
        """Write rows, beginning at the image `start`."""
        for array, value in zip(self.arrays, rows, strict=True):
            array[start : start + len(value)] = value

    def rows(self, indices: Tensor) -> list[Tensor]:
        """Return the rows of these images, one tensor (B, *shape) for each spec."""
        return [array.index_select(0, indices) for array in self.arrays]

    def finish(self) -> None:
        """Complete a folder: write its files to the disk, then give it its name."""
        if self._partial is None or self._final is None:
            return
        paths = [self._partial / f"{j}.bin" for j in range(len(self.specs))]
        try:
            for path in paths:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
            stated = {**self._facts, DIGESTS: [_digests(path) for path in paths]}
            (self._partial / FACTS).write_text(json.dumps(stated, sort_keys=True), encoding="utf-8")
        except OSError as error:
            if is_full(error):
                raise _no_room(self._final.parent) from None
            raise
        shutil.rmtree(self._final, ignore_errors=True)
        os.replace(self._partial, self._final)
        self._partial = None
        self._unlock()

    def discard(self) -> None:
        """Remove an incomplete folder; the rows are gone with it, and their room is free again."""
        if self._partial is not None:
            self.arrays = []
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial = None
        self._unlock()

    def _unlock(self) -> None:
        _close(self._lock)
        self._lock = -1


def digest_of(rows: Sequence[Tensor]) -> str:
    """Return a digest of the bits of the rows. It identifies a frozen part by its outputs for fixed images."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{tuple(row.shape)} {row.dtype}".encode())
        digest.update(row.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def room(gib: float, folder: Path | None) -> tuple[float, str]:
    """Return how many bytes the rows may take in `folder` or in memory, and the reason as text."""
    allowed = gib * 2**30
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        # A full disk breaks more than this run, so a tenth of the free space stays free.
        return (0.9 * free, f"are free in {folder}") if 0.9 * free < allowed else (allowed, "are allowed")
    try:
        available = 0.5 * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return allowed, "are allowed"
    return (available, "is half of the free memory") if available < allowed else (allowed, "are allowed")


def mebibytes(count: float) -> str:
    """Format bytes in MiB, or in GiB from half a GiB on."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _allocate(path: Path, size: int, folder: Path) -> None:
    """Create a file of zeros with reserved disk space: writing to a mapping without space would kill the process.

    Raises:
        DiskFull: there is not enough space.
    """
    try:
        with path.open("xb") as file:
            number = file.fileno()
            try:
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(number, 0, size)
                    return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS):
                    raise
            zeros = bytes(min(size, 2**20))
            for start in range(0, size, 2**20):
                file.write(zeros[: size - start])
            file.flush()
            os.fsync(number)
    except OSError as error:
        if is_full(error):
            raise _no_room(folder, size) from None
        raise


def _no_room(folder: Path, size: int = 0) -> VpeftError:
    what = f"cached outputs of the frozen part need {mebibytes(size)}" if size else "a cache could not be written"
    return disk_full(
        folder, what, "The incomplete files were removed. Give another prefix_folder, or none to use memory."
    )


def _digests(path: Path) -> list[str]:
    """Return the sha256 of each block of a file."""
    found: list[str] = []
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.append(hashlib.sha256(block).hexdigest())
    return found


def _close(number: int) -> None:
    if number >= 0:
        os.close(number)


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
