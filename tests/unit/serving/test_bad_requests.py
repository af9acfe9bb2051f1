"""Requests that are wrong get an answer that says so, and change nothing."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vpeft

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from starlette.testclient import TestClient

from tests.unit.serving.fleet import BACKBONE, made, picture
from vpeft.methods import get
from vpeft.serving.app import Server
from vpeft.serving.engine import Work
from vpeft.serving.settings import NotSafe, ServeSettings, Tokens, require_safe

TOKEN, ADMIN = "a-token-for-the-tests", "another-token-for-changes"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("served")
    made(found, "lora", get("lora")(rank=2))
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("images")
    (found / "in").mkdir()
    (found / "in" / "x.png").write_bytes(picture())
    (found / "notes.txt").write_text("secret")
    (found.parent / "outside.png").write_bytes(picture())
    os.symlink(found.parent / "outside.png", found / "in" / "link.png")
    os.mkfifo(found / "in" / "pipe.png")
    return found


def started(folder: Path, tokens: Tokens | None = None, **settings: Any) -> TestClient:
    server = Server(
        vpeft.create_backbone(BACKBONE).eval(),
        ServeSettings(folder=folder, hosts=("testserver",), **settings),
        tokens or Tokens(use=TOKEN, admin=ADMIN),
    )
    client = TestClient(server.app, raise_server_exceptions=False, headers=BEARER)
    client.server = server  # type: ignore[attr-defined]
    return client


@pytest.fixture(scope="module")
def client(folder: Path, images: Path) -> Iterator[TestClient]:
    with started(folder, images=images, body_mib=1, max_pixels=1_000_000, images_per_request=4) as found:
        yield found


GOOD = picture()
PNG = {"content-type": "image/png"}
# name: method, address, what is sent, the status
BAD: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "nothing": ("POST", "/predict?adapter=lora", {}, 422),
    "a text": ("POST", "/predict?adapter=lora", {"content": b"hello"}, 422),
    "a truncated image": ("POST", "/predict?adapter=lora", {"content": GOOD[: len(GOOD) // 2]}, 422),
    "a damaged image": ("POST", "/predict?adapter=lora", {"content": GOOD[:40] + bytes(200) + GOOD[240:]}, 422),
    "a bomb": ("POST", "/predict?adapter=lora", {"content": bomb(30000, 30000)}, 413),
    "a narrow bomb": ("POST", "/predict?adapter=lora", {"content": bomb(2**31 - 1, 1)}, 413),
    "a large image": ("POST", "/predict?adapter=lora", {"content": bomb(1200, 1200)}, 413),
    "a large body": ("POST", "/predict?adapter=lora", {"content": bytes(2**20 + 1)}, 413),
    "a large body of unknown size": ("POST", "/predict?adapter=lora", {"content": iter([bytes(2**20)] * 3)}, 413),
    "too many images": ("POST", "/predict?adapter=lora", {"files": [("image", ("a.png", GOOD))] * 5}, 400),
    "another type": ("POST", "/predict?adapter=lora", {"content": b"x", "headers": {"content-type": "text/html"}}, 415),
    "an unknown adapter": ("POST", "/predict?adapter=nobody", {"content": GOOD, "headers": PNG}, 404),
    "a path as an adapter": ("POST", "/predict?adapter=../../etc/passwd", {"content": GOOD}, 404),
    "a null as an adapter": ("POST", "/predict?adapter=%00", {"content": GOOD}, 404),
    "a long adapter": ("POST", "/predict?adapter=" + "a" * 5000, {"content": GOOD}, 404),
    "no number": ("POST", "/predict?adapter=lora&top=many", {"content": GOOD}, 422),
    "none of them": ("POST", "/predict?adapter=lora&top=0", {"content": GOOD}, 422),
    "no JSON": ("POST", "/predict", {"content": b"{", "headers": {"content-type": "application/json"}}, 422),
    "a list": ("POST", "/predict", {"json": [1]}, 422),
    "an unknown key": ("POST", "/predict", {"json": {"adapter": "lora", "paths": [], "x": 1}}, 422),
    "no paths": ("POST", "/predict", {"json": {"adapter": "lora", "paths": []}}, 422),
    "a number as a path": ("POST", "/predict", {"json": {"adapter": "lora", "paths": [3]}}, 422),
    "deep JSON": (
        "POST",
        "/predict",
        {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}},
        422,
    ),
    "bytes that are no text": (
        "POST",
        "/predict",
        {"content": b'{"adapter": "\xff"}', "headers": {"content-type": "application/json"}},
        422,
    ),
    "a way out": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["../outside.png"]}}, 403),
    "an absolute path": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["/etc/passwd"]}}, 403),
    "a link out": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["in/link.png"]}}, 403),
    "a pipe": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["in/pipe.png"]}}, 404),
    "a folder": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["in"]}}, 404),
    "a text file": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["notes.txt"]}}, 404),
    "no such file": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["in/y.png"]}}, 404),
    "a null in a path": ("POST", "/predict", {"json": {"adapter": "lora", "paths": ["in/x.png\0"]}}, 403),
    "a form without its end": (
        "POST",
        "/predict",
        {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}},
        400,
    ),
    "another field": ("POST", "/predict", {"files": {"image": GOOD}, "data": {"model": "x"}}, 422),
    "another file": ("POST", "/predict", {"files": {"other": GOOD}}, 422),
    "no address": ("GET", "/nowhere", {}, 404),
    "another method": ("GET", "/predict", {}, 405),
    "a traversal": ("GET", "/..%2f..%2fetc/passwd", {}, 404),
    "another host": ("GET", "/health", {"headers": {"host": "evil.example"}}, 400),
    "no token": ("GET", "/adapters", {"headers": {"authorization": ""}}, 401),
    "a wrong token": ("GET", "/adapters", {"headers": {"authorization": "Bearer wrong"}}, 401),
    "a token of another kind": ("GET", "/adapters", {"headers": {"authorization": f"Basic {TOKEN}"}}, 401),
    "an addition without the other token": ("POST", "/adapters?name=x", {"content": b"x"}, 403),
    "a removal without the other token": ("DELETE", "/adapters/lora", {}, 403),
    "a removal without a token": ("DELETE", "/adapters/lora", {"headers": {"authorization": ""}}, 401),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_answered_and_changes_nothing(client: TestClient, folder: Path, name: str) -> None:
    method, address, sent, status = BAD[name]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    answer = client.request(method, address, **sent)
    assert answer.status_code == status, answer.text
    if status not in (400, 405) or answer.headers["content-type"] == "application/json":
        said = answer.json()["error"]
        assert said and "Traceback" not in said and str(folder) not in said and "secret" not in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    good = client.post("/predict?adapter=lora", content=GOOD)
    assert good.status_code == 200 and good.json()["predictions"][0]["predictions"]


def test_an_image_by_its_path_is_read(client: TestClient) -> None:
    assert client.post("/predict", json={"adapter": "lora", "paths": ["in/x.png"]}).status_code == 200


def test_the_other_token_adds_and_removes(client: TestClient, folder: Path) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    data = (folder / "lora.safetensors").read_bytes()
    assert client.post("/adapters?name=more", content=data, headers=admin).status_code == 201
    assert client.delete("/adapters/more", headers=admin).status_code == 204


def test_without_a_token_nobody_changes_adapters(folder: Path) -> None:
    with started(folder, Tokens()) as open_one:
        assert open_one.post("/predict?adapter=lora", content=GOOD).status_code == 200
        assert open_one.delete("/adapters/lora").status_code == 403
        assert (folder / "lora.safetensors").is_file()


def test_who_asks_too_often_is_told_when_to_come_back(folder: Path) -> None:
    with started(folder, rate=3) as limited:
        answers = [limited.get("/adapters") for _ in range(5)]
        assert [one.status_code for one in answers] == [200, 200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert limited.get("/health").status_code == 200


def test_a_full_queue_is_answered_at_once(folder: Path) -> None:
    with started(folder, queue=2, wait_ms=60_000, batch=8, timeout_s=5) as busy:
        engine = busy.server.engine  # type: ignore[attr-defined]
        card = busy.server.catalogue.card("lora")  # type: ignore[attr-defined]
        sample = card.task.sample_of(card.preprocessing.read(GOOD), card.transform, "x")
        waiting = [engine.submit("predict", "lora", [sample]) for _ in range(2)]
        answer = busy.post("/predict?adapter=lora", content=GOOD)
        assert answer.status_code == 503 and "retry-after" in answer.headers
    assert [len(one.result(0)) for one in waiting] == [1, 1], "closing computes what waits"


def test_nobody_waits_longer_than_the_limit(folder: Path) -> None:
    with started(folder, timeout_s=0.3, wait_ms=3000, batch=8) as slow:
        answer = slow.post("/predict?adapter=lora", content=GOOD)
        assert answer.status_code == 503 and "too long" in answer.json()["error"]


def test_an_error_of_one_request_is_not_that_of_its_neighbours(folder: Path) -> None:
    with started(folder, wait_ms=200) as client:
        engine = client.server.engine  # type: ignore[attr-defined]
        card = client.server.catalogue.card("lora")  # type: ignore[attr-defined]
        good = card.task.sample_of(card.preprocessing.read(GOOD), card.transform, "x")
        bad = type(good)(torch.full_like(good.input, 0).to(torch.complex64), None, "bad")
        answers = [engine.submit("predict", "lora", [one]) for one in (good, bad, good)]
        assert answers[0].result(20)[0].rows == answers[2].result(20)[0].rows
        with pytest.raises(Exception, match=r"takes images .* torch\.complex64 is none"):
            answers[1].result(20)
        assert client.get("/health").status_code == 200


def test_a_request_that_was_given_up_is_not_computed(folder: Path) -> None:
    with started(folder, wait_ms=300) as client:
        engine = client.server.engine  # type: ignore[attr-defined]
        card = client.server.catalogue.card("lora")  # type: ignore[attr-defined]
        sample = card.task.sample_of(card.preprocessing.read(GOOD), card.transform, "x")
        first, second = (engine.submit("predict", "lora", [sample]) for _ in range(2))
        assert first.cancel()
        assert second.result(20) and first.cancelled()
    assert len(Work("predict", "lora", [sample])) == 1


@pytest.mark.parametrize(
    ("settings", "tokens", "safe"),
    [
        ({}, Tokens(), True),
        ({"host": "localhost"}, Tokens(), True),
        ({"host": "::1"}, Tokens(), True),
        ({"host": "0.0.0.0"}, Tokens(), False),
        ({"host": "example.org"}, Tokens(), False),
        ({"host": "0.0.0.0"}, Tokens(use=TOKEN), True),
    ],
)
def test_other_machines_need_a_token(tmp_path: Path, settings: dict[str, Any], tokens: Tokens, safe: bool) -> None:
    if safe:
        require_safe(ServeSettings(folder=tmp_path, **settings), tokens)
        return
    with pytest.raises(NotSafe, match="VPEFT_SERVE_TOKEN"):
        require_safe(ServeSettings(folder=tmp_path, **settings), tokens)


def test_a_token_that_can_be_guessed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPEFT_SERVE_TOKEN", "short")
    with pytest.raises(NotSafe, match="16"):
        Tokens.from_environment()


def test_the_log_has_one_json_object_for_each_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    from vpeft.serving.gate import JsonLines

    log = logging.getLogger("vpeft.serving")
    log.addHandler(caplog.handler)
    log.setLevel(logging.INFO)
    try:
        answer = client.post("/predict?adapter=lora", content=GOOD)
    finally:
        log.removeHandler(caplog.handler)
    record = next(one for one in caplog.records if one.getMessage() == "request")
    line = json.loads(JsonLines().format(record))
    assert line["request"] == answer.headers["x-request-id"] and line["status"] == 200 and line["adapter"] == "lora"
    assert TOKEN not in JsonLines().format(record)
