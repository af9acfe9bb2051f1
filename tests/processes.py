"""Run something in several processes that form one group, as a launcher starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
PATIENCE = 180.0  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def launched_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}


def in_processes(count: int, folder: Path, work: Callable[[int], T], patience: float = PATIENCE) -> list[T]:
    """What `work(rank)` returns in each of `count` forked processes of one thread; tensors and plain values."""
    port = free_port()

    def run(rank: int) -> None:
        os.environ.update(launched_environment(rank, count, port))
        torch.set_num_threads(1)
        try:
            torch.save(work(rank), folder / f"result_{rank}.pt")
        except BaseException:
            (folder / f"error_{rank}.txt").write_text(traceback.format_exc())
            raise

    folder.mkdir(parents=True, exist_ok=True)
    forked = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(count)]
    for one in forked:
        one.start()
    deadline = time.monotonic() + patience
    try:
        while any(one.exitcode is None for one in forked) and all(one.exitcode in (None, 0) for one in forked):
            assert time.monotonic() < deadline, "the processes did not end"
            time.sleep(0.01)
        time.sleep(0.2 if any(one.exitcode for one in forked) else 0)  # what the others say of it
    finally:
        for one in forked:
            if one.exitcode is None:
                one.kill()
            one.join()
    told = "\n".join(path.read_text() for path in sorted(folder.glob("error_*.txt")))
    assert all(one.exitcode == 0 for one in forked), told
    return [torch.load(folder / f"result_{rank}.pt", weights_only=False) for rank in range(count)]
