"""How many threads a run computes with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

# One thread for each run: runs are small, and numbers then do not depend on how many of them run at once.
THREADS = 1


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads meanwhile."""
    # Here and not above, so that reading a ledger (which the package's other half does) does not load torch.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
