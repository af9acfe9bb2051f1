"""Random numbers under control: seeds from counters, states that can be written down, blocks without a trace."""

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
    """A seed below 2^63 that depends on every part and on their order, the same on every machine."""
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
    """The state of every generator: tensors for torch, plain JSON values for Python and NumPy."""
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
    """Put back what `random_state` wrote down. States of devices that are not here are left out."""
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
    """Where every generator stands, as it is kept within one process: cheaper than what can be written down."""

    def __init__(self) -> None:
        self._torch = _torch_state()
        self._python, self._numpy = random.getstate(), np.random.get_state(legacy=False)

    def put(self) -> None:
        _set_torch_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Whatever the block draws or seeds, every generator is afterwards as it was before."""
    before = _Generators()
    try:
        yield
    finally:
        before.put()


class OwnRandomness:
    """Generators of one run beside others: each block goes on where the block before ended, and leaves no trace."""

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
    """Draws on the processor come from `seed` inside the block, and the generators are afterwards as before.

    For the transforms of one batch: the accelerator's generators, which no data set uses, are not touched.
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
