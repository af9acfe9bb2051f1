"""A small Hub on this machine: the part of its interface that pushing and pulling files needs, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories in memory: each a list of commits, each a mapping from paths to bytes."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.tokens: list[str | None] = []

    def commit_id(self, name: str, number: int = -1) -> str:
        number %= len(self.repositories[name])
        return hashlib.sha1(f"{name} {number}".encode()).hexdigest()

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commits = self.repositories.get(name)
        if not commits:
            return None
        for number, files in reversed(list(enumerate(commits))):
            if revision in ("main", self.commit_id(name, number)):
                return self.commit_id(name, number), files
        return None


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.hub.tokens.append(self.headers.get("Authorization"))
        if parts == ["api", "repos", "create"]:
            given = json.loads(data)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            if name in self.hub.repositories:
                return self._answer(409, {"error": "exists", "url": self._url(name)})
            self.hub.repositories[name] = []
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(name)
            return self._answer(200, {"url": self._url(name)})
        if parts == ["api", "validate-yaml"]:  # the client asks what the Hub thinks of the card's header
            return self._answer(200, {"errors": [], "warnings": []})
        name, what = "/".join(parts[2:4]), parts[4]
        if name not in self.hub.repositories:
            return self._missing()
        if what == "preupload":
            asked = json.loads(data)["files"]
            return self._answer(
                200, {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        commits = self.hub.repositories[name]
        files = dict(commits[-1]) if commits else {}
        for line in data.decode().splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
        commits.append(files)
        oid = self.hub.commit_id(name)
        return self._answer(200, {"commitUrl": f"{self._url(name)}/commit/{oid}", "commitOid": oid})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            found = self.hub.files(name, parts[5] if len(parts) > 5 else "main")
            if found is None:
                return self._missing()
            siblings = [{"rfilename": path} for path in found[1]]
            return self._answer(200, {"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": []})
        name, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if name not in self.hub.repositories:
            return self._missing()
        found = self.hub.files(name, revision)
        if found is None:
            return self._answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        if path not in found[1]:
            return self._answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found[0])
        data = found[1][path]
        return self._answer(
            200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=found[0], Content_Length=str(len(data))
        )

    def _missing(self) -> None:
        self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def _url(self, name: str) -> str:
        host, port = self.server.server_address[:2]
        return f"http://{host!s}:{port}/{name}"


@contextmanager
def running() -> Iterator[tuple[Hub, str]]:
    """A Hub and its address, on this machine alone."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
