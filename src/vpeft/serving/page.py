"""The page for people at `/`: drop an image, choose an adapter, see what it says and where it looks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
# The page runs its own script alone and speaks with this server alone.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _file(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


def _answer(name: str, kind: str) -> Response:
    headers = {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(_file(name), media_type=kind, headers=headers)


async def page(request: Request) -> Response:
    """The page."""
    return _answer("index.html", "text/html")


async def script(request: Request) -> Response:
    """What makes it work."""
    return _answer("page.js", "text/javascript")


async def style(request: Request) -> Response:
    """How it looks."""
    return _answer("page.css", "text/css")
