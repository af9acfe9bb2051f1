"""Leases: the right to carry out one run, held by at most one process.

A lease is a small file that names its holder and whose modification time is the holder's heartbeat. A lease is stale
when its holder is gone: on the same machine this is seen at once from the process table (process id and start time, so
that a reused id is not mistaken for the holder), on another machine from a heartbeat that stopped. Taking, taking over
and releasing happen under one short file lock, without which two processes that find the same stale lease could both
win. A holder that lost its lease (suspended for long on a shared disk) learns it from `held()` before it writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Seconds between heartbeats, and the silence after which a holder on another machine counts as gone: sixty missed
# beats, enough for a paused virtual machine or a slow network disk.
BEAT = 5.0
SILENCE = 300.0


class Lease:
    """The right to carry out one run, while it is held. Use it in a `with` statement."""

    def __init__(self, path: Path, token: str, guard: Path, beat: float) -> None:
        self.path, self._token, self._guard = path, token, guard
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beats, args=(beat,), name=f"lease {path.stem}", daemon=True)
        self._thread.start()

    def _beats(self, beat: float) -> None:
        while not self._stop.wait(beat):
            with contextlib.suppress(OSError):
                if self.held():
                    os.utime(self.path)

    def held(self) -> bool:
        """Whether the lease is still this holder's."""
        found = _read(self.path)
        return found is not None and found.get("token") == self._token

    def release(self) -> None:
        """Give the lease back; harmless when it was lost or given back before."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)
        with locked(self._guard):
            if self.held():
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """The leases of one ledger, in a folder of their own."""

    def __init__(self, folder: Path, beat: float = BEAT, silence: float = SILENCE) -> None:
        self.folder, self.beat, self.silence = folder, beat, silence
        self.guard = folder / "guard"

    def take(self, key: str) -> Lease | None:
        """The lease of `key`, or None while a live process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key}.lease"
        token = uuid.uuid4().hex
        with locked(self.guard):
            if self._alive(path):
                return None
            # Never written in place: a reader sees the old holder or the new one, not half a file.
            draft = path.with_suffix(f".{token}")
            draft.write_text(json.dumps({"token": token, **_myself()}))
            draft.replace(path)
        return Lease(path, token, self.guard, self.beat)

    def taken(self, key: str) -> bool:
        """Whether a live process holds the lease of `key`."""
        return self._alive(self.folder / f"{key}.lease")

    def _alive(self, path: Path) -> bool:
        holder = _read(path)
        if holder is None:
            return False
        if holder.get("place") == _place():
            pid = int(str(holder.get("pid", 0)))
            if not _exists(pid):
                return False
            since = _start(pid)
            if since and holder.get("since"):
                return since == holder["since"]
        try:
            return time.time() - path.stat().st_mtime < self.silence
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file lock `path`; the operating system lets go of it when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if sys.platform == "win32":
            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def _myself() -> dict[str, object]:
    return {"pid": os.getpid(), "since": _start(os.getpid()), "place": _place()}


def _place() -> str:
    """A name of the machine, its boot and its process namespace: where a process id means something. Hashed, since a
    ledger is passed on to others and a host name need not be."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    # A process that was killed but not yet waited for by its parent still has an id and will never work again.
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True


def _start(pid: int) -> str:
    """The start time of a process in clock ticks since boot, or an empty string where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
