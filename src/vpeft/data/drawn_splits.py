"""Splits of images that are drawn from a seed: made once and kept in a cache, told by digests that ship with vpeft."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vpeft.atomic import replace_file
from vpeft.data.problems import DataError
from vpeft.errors import VpeftError

Arrays = Mapping[str, NDArray[Any]]


def require_packages(needs: Sequence[str], what: str) -> None:
    """Raise `DataError` where one of the packages (import names) that `what` is made from is not installed."""
    absent = [package for package in needs if find_spec(package) is None]
    if absent:
        raise DataError(f'{what} needs {" and ".join(absent)}, not installed here: pip install "vpeft[bench]"')


def random_of_split(seed: int, version: int, place: int, name: str) -> np.random.Generator:
    """The generator of one split, by its place among the splits, of the set `name`."""
    return np.random.Generator(np.random.PCG64([seed, version, place, *name.encode()]))


def kept_arrays(file: str, stored: str, make: Callable[[], Arrays], digest: Callable[[Arrays], str]) -> Arrays:
    """The arrays of a split: those in the cache, else those that `make` gives, which the cache then keeps.

    The cache lies below `$VPEFT_CACHE` or `~/.cache/vpeft`.

    Args:
        file: name in the cache, without the ending; a part of the digest is added.
        stored: the digest that ships with the package. Arrays with another one are given and not kept.
        make: draws the arrays.
        digest: of arrays.
    """
    folder = Path(os.environ.get("VPEFT_CACHE") or Path.home() / ".cache" / "vpeft")
    path = folder / f"{file}-{stored[:16]}.npz"
    if path.exists():
        try:
            with np.load(io.BytesIO(path.read_bytes())) as held:
                found = {name: held[name] for name in held.files}
            if digest(found) == stored:
                return found
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
            pass
        path.unlink(missing_ok=True)  # truncated or not ours: make it again
    arrays = make()
    if digest(arrays) == stored:
        # A folder that cannot be written costs the time of making the arrays again, nothing else.
        with suppress(OSError, VpeftError):
            replace_file(path, lambda part: _write(part, arrays))
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    named: dict[str, Any] = dict(arrays)
    with path.open("wb") as file:
        np.savez(file, **named)


def require_digest(what: str, split: str, found: str, stored: str | None) -> None:
    """Raise `DataError` where a split that was made anew has another digest than the one that is stored."""
    if found != stored:
        raise DataError(
            f"The split {split!r} of {what} is not the one that the results were made with (sha256 {found[:12]}, stored"
            f" {str(stored)[:12]}). A package it is made from has another version?"
        )


def read_digests(file: Path) -> dict[str, dict[str, str]]:
    """Set -> split -> sha256, as shipped in `file`; empty where there is none yet."""
    content: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.exists() else {}
    return content


def compare_or_store(file: Path, sets: Mapping[str, Callable[[], dict[str, str]]], prog: str, about: str) -> int:
    """The command of a folder of sets: make them anew, time them, compare their digests, or store them with --store.

    Args:
        file: of the digests.
        sets: for each set a function that makes it and gives the digest of each split.
        prog, about: the command and what it does, for --help.

    Returns:
        The exit status: 1 where a set differs.
    """
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--store", action="store_true", help="write the digests instead of comparing them")
    parser.add_argument("names", nargs="*", help="sets; all when none is named")
    given = parser.parse_args()
    digests = {name: dict(splits) for name, splits in read_digests(file).items() if name in sets}
    differing = 0
    for name, make in sets.items():
        if given.names and name not in given.names:
            continue
        began = time.perf_counter()
        found = make()
        same = found == digests.get(name)
        differing += not same
        print(f"{name:12} {'as stored' if same else 'DIFFERENT'}  {time.perf_counter() - began:5.1f} s")
        digests[name] = found
    if given.store:
        file.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
        return 0
    return 1 if differing else 0
