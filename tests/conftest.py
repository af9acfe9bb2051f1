"""Shared by every test: one thread, a fixed seed, and no plan printed unless a test asks."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _steady() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
