"""How a server does under load: throughput with 1,000 adapters against 8, and times at half load against the backbone.

    python benchmarks/load_test.py --out benchmarks/results/load_test.json

It starts `vpeft serve` as a process, one after the other, and asks it from this one, over the loopback interface alone,
for a bounded time. The backbone is the shipped pocket_vit; the adapters are of eight methods, copies of eight files, so
that 1,000 of them cost what 1,000 different ones cost. "Bare" asks the same server for features of the frozen backbone.

Throughput is given in answers per second of wall time and per second of the server's own processor time, which says
the same on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vpeft
from vpeft.methods import get

BACKBONE = "pocket_vit"
METHODS: dict[str, Any] = {
    "lora": get("lora")(rank=4),
    "adaptformer": get("adaptformer")(bottleneck=8),
    "ssf": get("ssf")(),
    "vpt": get("vpt_deep")(tokens=4),
    "bitfit": get("bitfit")(),
    "dora": get("dora")(rank=4),
    "convpass": get("convpass")(),
    "houlsby": get("adapter")(),
}
AT_ONCE = 32  # requests under way at full load


def make_adapters(folder: Path, count: int) -> None:
    """Files a0 ... of the methods in turn."""
    folder.mkdir()
    files = []
    for name, method in METHODS.items():
        tuned = vpeft.tune(vpeft.create_backbone(BACKBONE), method, num_classes=10, show=False, verify=False)
        with torch.no_grad():
            for _, parameter in tuned.trainable():
                parameter.add_(0.02 * torch.randn_like(parameter))
        path = tuned.save(folder.parent / f"{name}.safetensors", labels=[str(k) for k in range(10)])
        files.append(path.read_bytes())
    for number in range(count):
        (folder / f"a{number}.safetensors").write_bytes(files[number % len(files)])


class Server:
    """`vpeft serve` as a process."""

    def __init__(self, folder: Path, count: int) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = held.getsockname()[1]
        self.log = (folder.parent / "log").open("wb")
        command = [sys.executable, "-m", "vpeft.cli", "serve", str(folder), "--backbone", BACKBONE]
        flags = ["--port", str(self.port), "--loaded", str(count), "--threads", "1", "--device", "cpu"]
        self.process = subprocess.Popen([*command, *flags], stdout=self.log, stderr=subprocess.STDOUT)

    @property
    def seconds(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


async def ask(port: int, path: str, body: bytes, connection: list[Any]) -> tuple[int, float]:
    """Status and seconds of one request, over a connection that is kept."""
    start = time.perf_counter()
    if not connection:
        connection[:] = await asyncio.open_connection("127.0.0.1", port)
    reader, writer = connection
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    status = int((await reader.readline()).split()[1])
    length = 0
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    await reader.readexactly(length)
    return status, time.perf_counter() - start


async def ready(port: int, body: bytes) -> None:
    """Wait until the server answers."""
    for _ in range(600):
        try:
            await ask(port, "/embed", body, [])
            return
        except OSError:
            await asyncio.sleep(0.3)
    raise SystemExit("the server did not start")


async def full(server: Server, path: Callable[[], str], body: bytes, requests: int) -> dict[str, float]:
    """As many answers as it gives, with AT_ONCE requests under way."""
    left, times, wrong = requests, list[float](), 0

    async def one() -> None:
        nonlocal left, wrong
        connection: list[Any] = []
        while left > 0:
            left -= 1
            status, taken = await ask(server.port, path(), body, connection)
            times.append(taken)
            wrong += status != 200

    used, start = server.seconds, time.perf_counter()
    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    wall, used = time.perf_counter() - start, server.seconds - used
    assert not wrong, f"{wrong} answers are errors"
    return {"per_second": len(times) / wall, "per_processor_second": len(times) / used}


async def steady(server: Server, path: Callable[[], str], body: bytes, rate: float, seconds: float) -> dict[str, float]:
    """Times at a steady rate; requests do not wait for each other's answers."""
    free: list[list[Any]] = []
    times: list[float] = []
    refused = 0

    async def one() -> None:
        nonlocal refused
        connection = free.pop() if free else []
        status, taken = await ask(server.port, path(), body, connection)
        refused += status != 200
        times.append(taken)
        free.append(connection)

    tasks, start = [], time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    ranked = sorted(times)
    return {
        "rate": rate,
        "refused": refused,
        "median": statistics.median(times),
        "p95": ranked[int(0.95 * (len(ranked) - 1))],
    }


def paths(kind: str, count: int) -> Callable[[], str]:
    """Addresses to ask: of the bare backbone, of eight of the adapters, or of all of them."""
    draw = random.Random(0)
    if kind == "bare":
        return lambda: "/embed"
    most = 8 if kind == "eight" else count
    return lambda: f"/predict?adapter=a{draw.randrange(most)}"


async def measured(folder: Path, count: int, requests: int, seconds: float, body: bytes) -> dict[str, Any]:
    """One server with so many adapters."""
    server = Server(folder, count)
    try:
        await ready(server.port, body)
        start = time.perf_counter()
        connection: list[Any] = []
        for number in range(count):
            await ask(server.port, f"/predict?adapter=a{number}", body, connection)
        loaded = time.perf_counter() - start
        found: dict[str, Any] = {"adapters": count, "first_use": loaded / count}
        for kind in ("bare", "eight", "all"):
            await full(server, paths(kind, count), body, requests // 4)
            rounds = [await full(server, paths(kind, count), body, requests) for _ in range(3)]
            found[kind] = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        rate = found["all"]["per_second"] / 2
        for kind in ("bare", "all"):
            found[kind] |= await steady(server, paths(kind, count), body, rate, seconds)
        found["load"] = os.getloadavg()[0]
    finally:
        code = server.end()
    assert code == 0, "it did not end well"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 1000])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    held = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(held, "PNG")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            place = Path(folder) / str(count)
            place.mkdir()
            make_adapters(place / "adapters", count)
            made = measured(place / "adapters", count, options.requests, options.seconds, held.getvalue())
            rows.append(asyncio.run(made))
            print(json.dumps(rows[-1]), flush=True)
    result = {"backbone": BACKBONE, "methods": list(METHODS), "at_once": AT_ONCE, "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
