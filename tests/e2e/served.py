"""A server in a process of its own, for tests that kill it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "a-token-for-the-tests"


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Served:
    """A running server.

    Args:
        folder: of its adapters.
        flags: further ones of `vpeft serve`.
        port: where it listens; a free one by default.
    """

    def __init__(self, folder: Path, *flags: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.log = folder.parent / f"server-{self.port}-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "vpeft.cli", "serve", str(folder), "--backbone", "pocket_vit"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--threads", "1", "--device", "cpu", *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VPEFT_SERVE_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"},
            )

    def ready(self, seconds: float = 600.0) -> Served:
        """Wait until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.ask("/health")[0] == 200:
                    return self
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"no answer: {self.log.read_text()}")

    def ask(self, path: str, data: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer; raises OSError where there is none."""
        sent = {"authorization": f"Bearer {TOKEN}", "content-type": "application/octet-stream", **headers}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=400) as answer:
                return answer.status, _read(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read())

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def end(self, number: int = signal.SIGTERM, seconds: float = 400.0) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def _read(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return body.decode(errors="replace")


@contextmanager
def serving(folder: Path, *flags: str, port: int | None = None) -> Iterator[Served]:
    """A server for the time of the context."""
    found = Served(folder, *flags, port=port)
    try:
        yield found.ready()
    finally:
        if found.process.poll() is None:
            found.process.kill()
            found.process.wait()
