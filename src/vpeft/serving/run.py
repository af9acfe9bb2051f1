"""Run a server as a process: sockets, processes, signals, the log."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from types import FrameType
from typing import Any

import torch
import uvicorn

from vpeft.serving.app import Server
from vpeft.serving.gate import JsonLines
from vpeft.serving.settings import ServeSettings, Tokens, require_safe

# Settings travel to the processes of a server in here.
SETTINGS = "VPEFT_SERVE_SETTINGS"
# Seconds without a sign of life after which one of several processes is replaced. A process gives none while it
# imports torch, which takes longer than uvicorn's five seconds where much else runs: it would never come up.
SILENCE = 120


def application(model: Any, settings: ServeSettings, device: torch.device) -> Any:
    """The ASGI application of one process, on a backbone that nobody else uses."""
    log_as_json()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Server(model.to(device).eval().requires_grad_(False), settings, Tokens.from_environment()).app


def settings_of_process() -> ServeSettings:
    """The settings that `run` has given to this process."""
    return ServeSettings.model_validate(json.loads(os.environ[SETTINGS]))


def run(settings: ServeSettings, factory: str) -> None:
    """Serve until SIGTERM or SIGINT, and then answer what was asked.

    Args:
        settings: of the server.
        factory: "module:function" that makes the application in each process.

    Raises:
        NotSafe: it would be open to other machines without a token.
    """
    require_safe(settings, Tokens.from_environment())
    os.environ[SETTINGS] = settings.model_dump_json()
    log_as_json()
    # uvicorn raises the signal again when it has answered everything; that is a good end.
    signal.signal(signal.SIGTERM, _ended)
    with tempfile.TemporaryDirectory(prefix="vpeft-metrics-") as folder:
        if settings.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        uvicorn.run(
            factory,
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            limit_concurrency=settings.connections,
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
            timeout_worker_healthcheck=SILENCE,
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            ws="none",
        )


def _ended(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def log_as_json() -> None:
    """One JSON object a line on stdout, for this server's messages and uvicorn's."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name in ("vpeft.serving", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.setLevel(logging.INFO)
        log.propagate = False
