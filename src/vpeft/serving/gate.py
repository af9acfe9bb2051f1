"""What every request passes: a log line, the rate of its client, its token, the size of its body, and a time limit."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections import OrderedDict
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vpeft.serving.answers import Answer, Refused
from vpeft.serving.metrics import Metrics
from vpeft.serving.settings import ServeSettings, Tokens

LOG = logging.getLogger("vpeft.serving")
MEBI = 2**20
# Paths that need no token: they tell nothing about adapters or images.
OPEN = frozenset({"/", "/health", "/openapi.json", "/page.js", "/page.css"})
# Clients whose rate is remembered; the one that was silent longest is forgotten first.
CLIENTS = 10_000
# Labels of metrics, so that no client can make new ones.
KNOWN = frozenset({"/predict", "/embed", "/explain", "/adapters", "/metrics", *OPEN})


class Gate:
    """Wraps an application."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, tokens: Tokens, metrics: Metrics) -> None:
        self.app, self.settings, self.tokens, self.metrics = app, settings, tokens, metrics
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, began = time.perf_counter(), 500, False
        came = [False]  # whether all of the body is there
        identity = secrets.token_hex(8)
        scope.setdefault("state", {})["request"] = identity

        async def sending(message: Message) -> None:
            nonlocal status, began
            if message["type"] == "http.response.start":
                status, began = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            await send(message)

        try:
            self._admit(scope)
            async with asyncio.timeout(self.settings.timeout_s):
                await self.app(scope, self._limited(scope, receive, came), sending)
        except (HTTPException, TimeoutError) as error:
            if not began:
                slow = Refused(503, "It took too long. Try again.", 1) if came[0] else Refused(408, "The body is slow.")
                await refused(error if isinstance(error, HTTPException) else slow)(scope, receive, sending)
        finally:
            taken, path = time.perf_counter() - start, "/" + scope["path"].split("/")[1]
            path = path if path in KNOWN else "other"
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(taken)
            LOG.info(
                "request",
                extra={
                    "facts": {
                        "request": identity,
                        "client": _client(scope),
                        "method": scope["method"],
                        "path": scope["path"][:200],
                        "status": status,
                        "ms": round(1000 * taken, 2),
                        **scope["state"].get("facts", {}),
                    }
                },
            )

    def _admit(self, scope: Scope) -> None:
        """Raise `Refused` for a client that asks too often, or without the right token."""
        if self.settings.rate is not None and scope["path"] != "/health":
            self._count(_client(scope), self.settings.rate)
        changes = scope["path"].startswith("/adapters") and scope["method"] not in ("GET", "HEAD")
        wanted = self.tokens.admin or self.tokens.use if changes else self.tokens.use
        if changes and wanted is None:
            raise Refused(403, "This server has no token, so nobody adds or removes adapters over HTTP.")
        given = _bearer(scope)
        if wanted is None or (not changes and scope["path"] in OPEN):
            return
        allowed = [wanted] if changes else [one for one in (self.tokens.use, self.tokens.admin) if one is not None]
        if not any(hmac.compare_digest(given, one.encode()) for one in allowed):
            known = self.tokens.use is not None and hmac.compare_digest(given, self.tokens.use.encode())
            if known:
                raise Refused(403, "This token does not add or remove adapters.")
            refusal = Refused(401, "A token is needed: Authorization: Bearer TOKEN.")
            refusal.headers = {"www-authenticate": "Bearer"}
            raise refusal

    def _count(self, client: str, rate: float) -> None:
        """One second's worth of requests may come at once."""
        now, most = time.monotonic(), max(1.0, rate)
        left, last = self._buckets.pop(client, (most, now))
        left = min(most, left + (now - last) * rate)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            raise Refused(429, f"More than {rate:g} requests in a second. Ask more slowly.", (1 - left) / rate)

    def _limited(self, scope: Scope, receive: Receive, came: list[bool]) -> Receive:
        """`receive` that ends a body of too many bytes."""
        adds = scope["path"].startswith("/adapters")
        most = int((self.settings.adapter_mib if adds else self.settings.body_mib) * MEBI)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > most:
            raise Refused(413, f"The body has {int(stated)} bytes; at most {most} are read.")
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise Refused(413, f"The body has more than {most} bytes.")
            came[0] = came[0] or not message.get("more_body", False)
            return message

        return limited


def refused(error: HTTPException) -> Answer:
    """The answer to a request that is refused."""
    return Answer({"error": error.detail}, status_code=error.status_code, headers=dict(error.headers or {}))


def _client(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else "unknown"


def _bearer(scope: Scope) -> bytes:
    kind, _, token = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
    return bytes(token.strip()) if kind.lower() == b"bearer" else b""


class JsonLines(logging.Formatter):
    """One JSON object for each line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        facts: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, ensure_ascii=True, default=str)
