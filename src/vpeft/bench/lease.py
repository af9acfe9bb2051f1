"""Leases: the right to carry out one run, held by at most one process.

A lease is a small file that names its holder and counts the holder's heartbeats. A lease is stale when its holder is
gone. On the same machine this is seen at once from the process table (process id and start time, so that a reused id is
not mistaken for the holder). On another machine it is seen by watching: when the count has not changed for `silence`
seconds of the observer's own monotonic clock, the holder is gone. No two clocks are compared, so a clock that is wrong
or jumps neither frees a living holder nor keeps a dead one.

Taking, taking over, beating and releasing happen under one short file lock, without which two processes that find the
same stale lease could both win. A holder that lost its lease (suspended for long on a shared disk) learns it from
`held()` before it writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock

# Seconds between heartbeats, and the silence after which a holder on another machine counts as gone: sixty missed
# beats, enough for a paused virtual machine or a slow network disk.
BEAT = 5.0
SILENCE = 300.0


class Lease:
    """The right to carry out one run, while it is held. Use it in a `with` statement."""

    def __init__(self, path: Path, holder: Mapping[str, object], guard: Path, beat: float) -> None:
        self.path, self._holder, self._guard = path, holder, guard
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beats, args=(beat,), name=f"lease {path.stem}", daemon=True)
        self._thread.start()

    def _beats(self, beat: float) -> None:
        count = 0
        while not self._stop.wait(beat):
            count += 1
            # A disk that is away for a moment costs a beat, and many make a silence.
            with contextlib.suppress(OSError), locked(self._guard):
                if self.held():
                    _write(self.path, {**self._holder, "beats": count})

    def held(self) -> bool:
        """Whether the lease is still this holder's."""
        found = _read(self.path)
        return found is not None and found.get("token") == self._holder["token"]

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
    """The leases of one ledger, in a folder of their own. `clock` gives seconds that only go forward."""

    def __init__(
        self,
        folder: Path,
        beat: float = BEAT,
        silence: float = SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.beat, self.silence, self._clock = folder, beat, silence, clock
        self.guard = folder / "guard"
        # By key: what was last seen of a holder elsewhere, and when that was first seen.
        self._watched: dict[str, tuple[object, float]] = {}

    def take(self, key: str) -> Lease | None:
        """The lease of `key`, or None while a live process holds it."""
        path = self._path(key)
        holder = {"token": uuid.uuid4().hex, **_myself(), "beats": 0}
        with locked(self.guard):
            if self._alive(key):
                return None
            _write(path, holder)
        return Lease(path, holder, self.guard, self.beat)

    def taken(self, key: str) -> bool:
        """Whether a live process holds the lease of `key`. The lease of a dead one is removed."""
        path = self._path(key)
        if not path.exists():
            return False
        with locked(self.guard):
            alive = self._alive(key)
            if not alive:
                # Whoever takes it next has perhaps not watched it for as long as this observer.
                path.unlink(missing_ok=True)
        return alive

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.lease"

    def _alive(self, key: str) -> bool:
        holder = _read(self._path(key))
        if holder is None:
            self._watched.pop(key, None)
            return False
        if holder.get("place") == _place():
            pid = int(str(holder.get("pid", 0)))
            if not _exists(pid):
                return False
            since = _start(pid)
            if since and holder.get("since"):
                return since == holder["since"]
        seen, now = (holder.get("token"), holder.get("beats")), self._clock()
        before = self._watched.get(key)
        if before is None or before[0] != seen:
            self._watched[key] = seen, now
            return True
        return now - before[1] < self.silence


def locked(path: Path) -> BaseFileLock:
    """The file lock `path`, for `with`; the operating system lets go of it when the process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, mode=0o666, poll_interval=0.01)


def _write(path: Path, holder: Mapping[str, object]) -> None:
    """Never in place: a reader sees the old holder or the new one, not half a file."""
    draft = path.with_suffix(f".{holder['token']}")
    draft.write_text(json.dumps(dict(holder)))
    draft.replace(path)


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
