"""Leases: the right to carry out one run, held by at most one process.

A lease is a small file that names its holder and counts the holder's heartbeats. A lease is stale when its holder is
gone. On the same machine this is seen at once from the process table (process id and start time, so that a reused id is
not mistaken for the holder). On another machine it is seen by watching: when the count has not changed for `silence`
seconds of the observer's own monotonic clock, the holder is gone. No two clocks are compared, so a clock that is wrong
or jumps neither frees a living holder nor keeps a dead one.

Taking, taking over, beating and releasing happen under one short file lock, without which two processes that find the
same stale lease could both win. A holder that lost its lease (suspended for long on a shared disk) learns it from
`held()` before it writes.

A lease is written whole, so a file with other content has no holder and may be taken. A file that cannot be read at all
may have one: that is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from vpeft.atomic import disk_full, is_full, write_json
from vpeft.errors import VpeftError
from vpeft.guarded import opened, parse_json

# Seconds between heartbeats, and the silence after which a holder on another machine counts as gone: sixty missed
# beats, enough for a paused virtual machine or a slow network disk.
BEAT = 5.0
SILENCE = 300.0
# Of a lease file; ours have 200.
BYTES = 4096


class BadLease(VpeftError):
    """The folder of leases, or a lease in it, can be neither read nor written."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: a name that no other has, the process with its start, its machine, and its heartbeats."""

    token: str
    pid: int
    since: str
    place: str
    beats: int = 0


class Lease:
    """The right to carry out one run, while it is held. Use it in a `with` statement."""

    def __init__(self, path: Path, holder: Holder, guard: Path, beat: float) -> None:
        self.path, self._holder, self._guard = path, holder, guard
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beats, args=(beat,), name=f"lease {path.stem}", daemon=True)
        self._thread.start()

    def _beats(self, beat: float) -> None:
        count = 0
        while not self._stop.wait(beat):
            count += 1
            # A disk that is away or full for a moment costs a beat, and many make a silence.
            with contextlib.suppress(OSError, VpeftError), locked(self._guard):
                if self.held():
                    _write(self.path, replace(self._holder, beats=count))

    def held(self) -> bool:
        """Whether the lease is still this holder's."""
        found = _read(self.path)
        return found is not None and found.token == self._holder.token

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
        """The lease of `key`, or None while a live process holds it.

        Raises:
            BadLease: it can be neither read nor written.
        """
        path = self._path(key)
        holder = Holder(uuid.uuid4().hex, os.getpid(), _start(os.getpid()), _place())
        with locked(self.guard):
            if self._alive(key):
                return None
            _write(path, holder)
        return Lease(path, holder, self.guard, self.beat)

    def taken(self, key: str) -> bool:
        """Whether a live process holds the lease of `key`. The lease of a dead one is removed.

        Raises:
            BadLease: it cannot be read.
        """
        path = self._path(key)
        if not os.path.lexists(path):
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
        if holder.place == _place():
            if not _exists(holder.pid):
                return False
            since = _start(holder.pid)
            if since and holder.since:
                return since == holder.since
        seen, now = (holder.token, holder.beats), self._clock()
        before = self._watched.get(key)
        if before is None or before[0] != seen:
            self._watched[key] = seen, now
            return True
        return now - before[1] < self.silence


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the file lock `path`; the operating system lets go of it when the process dies, however it dies.

    Args:
        path: of the lock; its folder is made if absent.
        timeout: seconds to wait for another holder; below 0, without end.

    Raises:
        BadLease: there can be no such file.
        filelock.Timeout: another held it for so long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise FileExistsError(None, "it is no plain file")
        lock = FileLock(path, mode=0o666, poll_interval=0.01)
        lock.acquire(timeout)
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        if is_full(error):
            raise disk_full(path.parent, "no lock can be taken") from None
        raise BadLease(f"The lock {path} cannot be taken: {error.strerror}. Name another folder.") from None
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, holder: Holder) -> None:
    """Never in place: a reader sees the old holder or the new one, not half a file."""
    write_json(path, asdict(holder))


def _read(path: Path) -> Holder | None:
    """The holder; None if there is no lease, or a file that no holder wrote."""
    try:
        with opened(path) as file:
            data = file.read(BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise BadLease(f"The lease {path} cannot be read: {said}. If no benchmark runs there, remove it.") from None
    try:
        found: Any = parse_json(data, path.name, BadLease) if len(data) <= BYTES else None
    except BadLease:
        return None
    kinds = {"token": str, "pid": int, "since": str, "place": str, "beats": int}
    if not isinstance(found, dict) or any(type(found.get(name, 0)) is not kind for name, kind in kinds.items()):
        return None
    return Holder(**{name: found.get(name, 0) for name in kinds})


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
    if not 0 < pid < 2**31:
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
