"""What the image of the server copies, starts and asks, tried without Docker in an environment with its one extra."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.served import free_port
from tests.installed import ROOT, Environment, build

DOCKERFILE = ROOT / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """The instructions with their arguments, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def said(name: str) -> str:
    """The arguments of the last instruction of a name."""
    return [arguments for kind, arguments in instructions() if kind == name][-1]


def test_what_is_copied_from_the_repository_is_there_and_sent_to_the_builder() -> None:
    sent = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [arguments.split()[:-1] for kind, arguments in instructions() if kind == "COPY"]
    sources = [name for names in copied for name in names if not names[0].startswith("--from")]
    assert sources == ["pyproject.toml", "README.md", "LICENSE", "src"]
    for name in sources:
        assert (ROOT / name).exists() and f"!{name}" in sent


def test_the_server_runs_as_a_user_without_rights() -> None:
    assert re.fullmatch(r"[1-9]\d{3,}", said("USER"))
    assert f"--uid {said('USER')}" in said("RUN")


@pytest.mark.slow
def test_the_entry_point_starts_the_health_check_passes_and_the_stop_signal_ends_it(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the extra dev is not installed")
    (extra,) = re.findall(r'"\.\[(\w+)\]"', "".join(arguments for kind, arguments in instructions() if kind == "RUN"))
    image = Environment(tmp_path / "image", build("wheel", tmp_path / "wheel"))
    image.link(extra)
    port, adapters = free_port(), tmp_path / "adapters"
    adapters.mkdir()
    start = json.loads(said("ENTRYPOINT"))
    assert start[0] == "vpeft" and start.count("/adapters") == 1 and start[-1] == said("EXPOSE")
    start = [str(image.python.with_name("vpeft")), *start[1:-1], str(port), "--backbone", "pocket_vit"]
    start[start.index("/adapters")] = str(adapters)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    check = json.loads(said("HEALTHCHECK").partition("CMD ")[2])
    check = [str(image.python), *(part.replace(said("EXPOSE"), str(port)) for part in check[1:])]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            start,
            env=plain | {"VPEFT_SERVE_TOKEN": "a-token-for-the-tests", "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 300
        while subprocess.run(check, env=plain, capture_output=True, check=False).returncode != 0:
            assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(1)
        server.send_signal(getattr(signal, said("STOPSIGNAL")))
        assert server.wait(timeout=60) == 0, (tmp_path / "log").read_text()
    finally:
        server.kill()
        shutil.rmtree(tmp_path / "image")
