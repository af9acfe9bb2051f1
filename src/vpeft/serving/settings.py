"""What a server may do: its limits, its folders, who may ask."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vpeft.errors import VpeftError

TOKEN, ADMIN_TOKEN = "VPEFT_SERVE_TOKEN", "VPEFT_SERVE_ADMIN_TOKEN"
# A token that is shorter can be guessed: 16 characters of base64 are 96 bits.
SHORTEST_TOKEN = 16


class NotSafe(VpeftError):
    """The server would be open to people who should not use it."""


class ServeSettings(BaseModel):
    """Everything that one server is told. Sizes and times hold for each process.

    Attributes:
        folder: adapters, `NAME.safetensors` or `NAME/adapter.safetensors`. It is looked at for each request, so that
            files may come and go while the server runs.
        backbone: its name, if the adapter files cannot tell.
        weights: the backbone's file of weights, if it has moved since training.
        allow_download: download a backbone that the adapters name.
        device: where to compute.
        threads: of torch; None leaves torch's own number.
        host, port: where to listen.
        images: requests may name image files below this folder; None allows uploads alone.
        loaded: adapters in memory; the one that was used least recently leaves first.
        pinned: adapters that are loaded at the start and never leave.
        batch: images in one pass.
        wait_ms: how long an image waits for others to share its pass.
        queue: images that may wait; more are answered 503.
        timeout_s: how long a request may take; then it is answered 503.
        body_mib: size of a request; more is answered 413.
        adapter_mib: size of an adapter that is added; more is answered 413.
        max_pixels: of an image; more is answered 413.
        images_per_request: more are answered 413.
        rate: requests in a second for one client; more are answered 429. None for any number.
        connections: open at a time; more are answered 503.
        decoders: images that are decoded at the same time.
        workers: processes, each with its own copy of the backbone.
        hosts: names by which the server may be called, against pages that point a name of theirs at it; None allows
            those of this machine where it listens on a loopback address, and any otherwise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    backbone: str | None = None
    weights: Path | None = None
    allow_download: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    images: Path | None = None
    loaded: int = Field(default=64, ge=1)
    pinned: tuple[str, ...] = ()
    batch: int = Field(default=16, ge=1)
    wait_ms: float = Field(default=5.0, ge=0)
    queue: int = Field(default=256, ge=1)
    timeout_s: float = Field(default=30.0, gt=0)
    body_mib: float = Field(default=32.0, gt=0)
    adapter_mib: float = Field(default=1024.0, gt=0)
    max_pixels: int = Field(default=50_000_000, ge=1)
    images_per_request: int = Field(default=64, ge=1)
    rate: float | None = Field(default=None, gt=0)
    connections: int = Field(default=1000, ge=1)
    decoders: int = Field(default=2, ge=1)
    workers: int = Field(default=1, ge=1)
    hosts: tuple[str, ...] | None = None

    @property
    def drain_s(self) -> float:
        """How long requests may still take after SIGTERM: as long as any, and a little to write the answers."""
        return self.timeout_s + 5

    @property
    def local(self) -> bool:
        """Whether it listens on a loopback address."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def called(self) -> tuple[str, ...]:
        """The names by which it may be called; "*" for any."""
        if self.hosts is not None:
            return self.hosts
        return ("127.0.0.1", "localhost", "[::1]", self.host) if self.local else ("*",)


class Tokens(BaseModel):
    """Who may ask. They come from the environment, so that no list of processes shows them.

    Attributes:
        use: must be sent as `Authorization: Bearer TOKEN`; None lets everybody ask who reaches the server.
        admin: adds and removes adapters; None takes `use`, and with neither nobody adds or removes any.
    """

    model_config = ConfigDict(frozen=True)

    use: str | None = None
    admin: str | None = None

    @classmethod
    def from_environment(cls) -> Tokens:
        """`VPEFT_SERVE_TOKEN` and `VPEFT_SERVE_ADMIN_TOKEN`.

        Raises:
            NotSafe: one is shorter than 16 characters, or holds others than visible ASCII.
        """
        found = {name: os.environ.get(name) or None for name in (TOKEN, ADMIN_TOKEN)}
        for name, value in found.items():
            if value is not None and (len(value) < SHORTEST_TOKEN or not all("!" <= letter <= "~" for letter in value)):
                raise NotSafe(
                    f"{name} needs at least {SHORTEST_TOKEN} visible ASCII characters, so that nobody guesses it. Make"
                    " one: python -c 'import secrets; print(secrets.token_urlsafe())'"
                )
        return cls(use=found[TOKEN], admin=found[ADMIN_TOKEN])


def require_safe(settings: ServeSettings, tokens: Tokens) -> None:
    """Refuse a server without a token that others than this machine reach.

    Raises:
        NotSafe: it is one.
    """
    if not settings.local and tokens.use is None:
        raise NotSafe(
            f"On {settings.host} other machines reach the server. Set a token, {TOKEN}=..., or listen on 127.0.0.1."
        )
