"""`vpeft serve` as a process: it drains, it loses nothing that it acknowledged, and bad requests do it no harm."""

from __future__ import annotations

import http.client
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from tests.e2e.served import TOKEN, free_port, serving
from tests.unit.serving.fleet import fleet, picture
from tests.unit.serving.test_bad_requests import bomb
from vpeft.cli.loaded import open_adapter
from vpeft.cli.predict import predictions_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleet(tmp_path_factory.mktemp("served") / "adapters")


def expected(adapters: Path, name: str, folder: Path) -> dict[str, float]:
    file = folder / "x.png"
    file.write_bytes(picture())
    (one,) = predictions_for(open_adapter(adapters / f"{name}.safetensors", device="cpu"), [file])
    return {str(row["label"]): float(row["probability"]) for row in one.rows}


def require_equal(answer: Any, wanted: dict[str, float]) -> None:
    said = {row["label"]: row["probability"] for row in answer["predictions"][0]["predictions"]}
    assert said == pytest.approx(wanted, abs=1e-5)


def test_sigterm_ends_it_when_what_was_asked_is_answered(adapters: Path, tmp_path: Path) -> None:
    wanted = expected(adapters, "lora", tmp_path)
    with serving(adapters, "--wait-ms", "8000", "--batch", "64", "--pinned", "lora", "--timeout", "300") as server:
        with ThreadPoolExecutor(6) as threads:
            answers = [threads.submit(server.ask, "/predict?adapter=lora", picture()) for _ in range(6)]
            while server.ask("/health")[1]["waiting"] < 6:  # for others to share their pass
                assert not any(answer.done() for answer in answers)
                time.sleep(0.1)
            assert server.end() == 0
            for answer in answers:
                status, said = answer.result()
                assert status == 200
                require_equal(said, wanted)
        with pytest.raises(OSError, match="refused"):
            server.ask("/health")
        assert [line["event"] for line in server.lines()].count("closed") == 1


def test_a_killed_server_loses_nothing_that_it_acknowledged(adapters: Path, tmp_path: Path) -> None:
    """Adapters are added and removed while the process is killed: what was acknowledged holds, files are whole."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    files = {name: (adapters / f"{name}.safetensors").read_bytes() for name in ("lora", "bottleneck")}
    there: dict[str, bytes] = {}
    gone: set[str] = set()
    changes = 0
    open_one: set[str] = set()  # asked for, and not acknowledged when the process was killed
    draw = random.Random(0)
    for life in range(3):
        with serving(folder, "--timeout", "300") as server:
            stop = threading.Event()

            def change(life: int = life, server: Any = server, stop: threading.Event = stop) -> None:
                nonlocal changes
                number = 0
                while not stop.is_set():
                    name, data = f"a{life}-{number}", files[draw.choice(list(files))]
                    number += 1
                    open_one.add(name)
                    try:
                        status, _ = server.ask(f"/adapters?name={name}", data)
                        assert status == 201
                        there[name] = data
                        open_one.discard(name)
                        changes += 1
                        if number % 3 == 0:
                            open_one.add(name)
                            status, _ = server.ask(f"/adapters/{name}", method="DELETE")
                            assert status == 204
                            there.pop(name)
                            gone.add(name)
                            open_one.discard(name)
                    except (OSError, http.client.HTTPException):
                        return

            thread = threading.Thread(target=change)
            thread.start()
            before = changes
            while changes < before + 3 and thread.is_alive():
                time.sleep(0.01)
            time.sleep(draw.random() / 5)  # in the middle of something
            server.end(signal.SIGKILL)
            stop.set()
            thread.join(200)
        found = {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}
        for name, data in there.items():
            if name not in open_one:
                assert found.get(name) == data, "an acknowledged adapter is lost or damaged"
        assert not gone & found.keys(), "an acknowledged removal came back"
        assert found.keys() <= there.keys() | open_one
        assert all(data in files.values() for data in found.values()), "a file is half of one"
    assert len(there) >= 3
    with serving(folder, "--timeout", "300") as server:
        status, said = server.ask("/adapters")
        assert status == 200 and not said["not_usable"] and len(said["adapters"]) == len(found)


def bad_bytes(port: int, data: bytes, whole: bool) -> bytes:
    """What comes back for bytes that may be no HTTP at all; what is no `whole` request ends with the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as held:
        held.sendall(data)
        if not whole:
            held.shutdown(socket.SHUT_WR)
        found = b""
        while part := held.recv(65536):
            found += part
    return found


def request(draw: random.Random, good: bytes, damaged: bytes) -> tuple[bytes, bool]:
    """A bad request, and whether it is HTTP, so that it is answered with a status."""

    def http(method: str, path: str, body: bytes = b"", kind: str = "image/png", token: str = TOKEN) -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\nconnection: close\r\n"
        return f"{head}content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body

    at = draw.randrange(1, len(good) - 1)
    kind = draw.randrange(12)
    if kind == 0:
        return http("POST", "/predict?adapter=lora", good[: min(at, len(good) - 100)]), True
    if kind == 1:
        return http(
            "POST", "/predict?adapter=lora", bomb(draw.randrange(9000, 2**31), draw.randrange(9000, 2**31))
        ), True
    if kind == 2:
        return http("POST", "/predict?adapter=lora", draw.randbytes(draw.randrange(200))), True
    if kind == 3:
        return http("POST", f"/predict?adapter={'x' * draw.randrange(1, 200)}", good), True
    if kind == 4:
        return http("POST", "/predict", draw.randbytes(draw.randrange(300)), "application/json"), True
    if kind == 5:
        return http("POST", "/predict", draw.randbytes(300), "multipart/form-data; boundary=x"), True
    if kind == 6:
        return http("POST", "/adapters?name=evil", damaged[: draw.randrange(len(damaged))]), True
    if kind == 7:
        return http("DELETE", f"/adapters/{draw.choice(['..%2flora', 'nobody', '%00', 'lora'])}", token="wrong"), True
    if kind == 8:
        return http("POST", "/predict", b'{"adapter":"lora","paths":["../../etc/passwd"]}', "application/json"), True
    if kind == 9:
        return http(draw.choice(["PUT", "PATCH", "BREW"]), "/predict", good), True
    if kind == 10:
        return draw.randbytes(draw.randrange(1, 400)), False
    whole = http("POST", "/predict?adapter=lora", good)
    return whole[: draw.randrange(len(whole) - len(good), len(whole) - 1)], False


def test_ten_thousand_bad_requests_change_nothing(adapters: Path, tmp_path: Path) -> None:
    wanted, good = expected(adapters, "lora", tmp_path), picture(1)
    before = {path.name: path.read_bytes() for path in adapters.iterdir()}
    damaged = bytearray(before["lora.safetensors"])
    damaged[-1] ^= 1
    with serving(adapters, "--max-pixels", "1000000", "--timeout", "300") as server:
        require_equal(server.ask("/predict?adapter=lora", picture())[1], wanted)
        counts: dict[str, int] = {}

        def many(seed: int) -> None:
            draw = random.Random(seed)
            for _ in range(1250):
                data, is_http = request(draw, good, bytes(damaged))
                try:
                    answer = bad_bytes(server.port, data, is_http)
                except ConnectionError:
                    answer = b""  # refused before all of it was sent; a hang is a TimeoutError, which fails
                status = answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else "none"
                counts[status] = counts.get(status, 0) + 1
                said = status.startswith("4") or (status == "none" and not is_http)
                assert said, (data[:200], answer[:300])

        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(many, seed) for seed in range(8)]:
                done.result()
        assert sum(counts.values()) == 10_000
        require_equal(server.ask("/predict?adapter=lora", picture())[1], wanted)
        assert {path.name: path.read_bytes() for path in adapters.iterdir()} == before
        assert not [line for line in server.lines() if line["level"] in ("error", "critical")]
        assert server.end() == 0


SLOW_TO_IMPORT = """
import sys, time
from pathlib import Path

if __name__ == "__mp_main__":  # in the processes that answer
    time.sleep(7)


async def answer(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})


def application():
    return answer


if __name__ == "__main__":
    from vpeft.serving.run import run
    from vpeft.serving.settings import ServeSettings

    run(ServeSettings(folder=Path(sys.argv[1]), port=int(sys.argv[2]), workers=2), "slow_to_import:application")
"""


def test_processes_that_take_long_to_import_come_up(tmp_path: Path) -> None:
    """uvicorn replaces a process that gives no sign of life for five seconds, unless it is told to wait."""
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT, encoding="utf-8")
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "slow_to_import.py", str(tmp_path), str(port)], cwd=tmp_path, stdout=file, stderr=file
        )
    try:
        end = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
                    assert answer.read() == b"here"
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    assert "died" not in log.read_text()
