"""Controlled random numbers: seeds from counters, states that can be saved, and contexts that restore the state."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """Return a seed below 2^63 that depends on every part and their order; the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _torch_state() -> dict[str, Tensor]:
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    return tensors


def _set_torch_state(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["torch"])
    for name, state in tensors.items():
        device, _, index = name.partition(".")
        if device == "cuda" and torch.cuda.is_available() and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(index))
        if device == "mps" and torch.backends.mps.is_available():
            torch.mps.set_rng_state(state)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of every generator: tensors for torch, plain JSON values for Python and NumPy."""
    tensors = _torch_state()
    version, words, gauss = random.getstate()
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    return tensors, {
        "python": [version, list(words), gauss],
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": [int(word) for word in numpy_state["state"]["key"]],
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }


def set_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Restore the result of `random_state`. States of devices that do not exist here are ignored."""
    _set_torch_state(tensors)
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
    numbers = plain["numpy"]
    np.random.set_state(
        {
            "bit_generator": numbers["bit_generator"],
            "state": {"key": np.array(numbers["key"], dtype=np.uint32), "pos": numbers["pos"]},
            "has_gauss": numbers["has_gauss"],
            "gauss": numbers["gauss"],
        }
    )


class _Generators:
    """The state of every generator, for use within one process; cheaper than a state that can be saved."""

    def __init__(self) -> None:
        self._torch = _torch_state()
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)

    def put(self) -> None:
        _set_torch_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """A context that restores the state of every generator at its end."""
    before = _Generators()
    try:
        yield
    finally:
        before.put()


class OwnRandomness:
    """The generators of one of several runs: each use as a context continues where the last one ended."""

    def __init__(self) -> None:
        self._state: _Generators | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with untouched_randomness():
            if self._state is not None:
                self._state.put()
            try:
                yield
            finally:
                self._state = _Generators()


@contextmanager
def batch_randomness(seed: int) -> Iterator[None]:
    """A context in which random numbers on the CPU come from `seed`; it restores the state at its end.

    It is for the transforms of one batch. Generators of accelerators, which no data set uses, are not changed.
    """
    generator = torch.default_generator
    torch_state, python_state, numpy_state = generator.get_state(), random.getstate(), np.random.get_state()
    generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        generator.set_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
